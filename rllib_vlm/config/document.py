"""YAML with a memory: plain data, and the file and line every value stands on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml

Path = tuple[str | int, ...]

# Far beyond any experiment file. A few lines of aliases to aliases would otherwise stand for billions of values.
_MOST_VALUES = 100_000
_DEEPEST = 64


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a value was written: `tuned_examples/spoc.yaml:12`, or `--set training.lr`."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(slots=True)
class Document:
    """A YAML document as plain dicts, lists and scalars.

    `marks` maps the path of a value, such as `("spoc", "config", "training", "lr")`, to its place;
    `errors` holds whatever was wrong with the text itself, each with its place.
    """

    data: Any
    marks: dict[Path, Mark] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def mark(self, path: Path) -> Mark:
        """The place of `path`, or of its nearest parent that has one."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.marks:
                return self.marks[path[:end]]
        return Mark("?")

    def child(self, *path: str | int) -> Document:
        """The document below `path`, with paths that start there."""
        data = self.data
        for key in path:
            data = data[key]
        depth = len(path)
        marks = {p[depth:]: m for p, m in self.marks.items() if p[:depth] == path}
        marks.setdefault((), self.mark(path))
        return Document(data, marks)

    def overlay(self, other: Document) -> Document:
        """`other` on top of this one: mappings merge key by key, everything else is replaced."""
        marks = dict(self.marks)
        data = _overlay(self.data, other.data, other.marks, marks, ())
        return Document(data, marks, [*self.errors, *other.errors])


def parse_yaml(text: str, source: str) -> Document:
    """Reads one YAML document.

    Numbers follow YAML 1.2 (`1e-6` is a number, `on` and `12:30` are strings). A key written twice, a tag
    that would build an object and an alias to itself are errors.
    """
    document = Document(None, {(): Mark(source, 1)})
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            document.data = _Reader(loader, source, document).read(node, (), ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        problem = error.problem or error.context or ""
        if problem.startswith("but "):  # it goes on with what the context says
            problem = f"{error.context}, {problem}"
        document.errors.append(f"{Mark(source, line)}: not YAML: {problem}")
    except yaml.YAMLError as error:
        document.errors.append(f"{source}: not YAML: {' '.join(str(error).split())}")
    except RecursionError:
        document.errors.append(f"{source}: nested more than {_DEEPEST} levels deep")
    except _TooMuchError:
        document.errors.append(f"{source}: more than {_MOST_VALUES} values, aliases counted")
    return document


def read_yaml(file: FilePath) -> Document:
    """Reads a YAML file; an unreadable one is an error of the document."""
    try:
        return parse_yaml(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Document(None, {(): Mark(str(file))}, [f"{file}: cannot be read: {reason}"])


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("merge", r"<<", "<"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)  # 007 is seven, not octal


_Loader.add_constructor("tag:yaml.org,2002:int", _number)


_PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge")
)


class _TooMuchError(Exception):
    """The document stands for more values than anybody wrote by hand."""


class _Reader:
    """Turns nodes into plain data, noting where each value stands."""

    def __init__(self, loader: _Loader, source: str, document: Document) -> None:
        self.loader = loader
        self.source = source
        self.document = document
        self.values = 0

    def read(self, node: yaml.Node, path: Path, above: tuple[int, ...]) -> Any:
        self.document.marks[path] = mark = Mark(self.source, node.start_mark.line + 1)
        if id(node) in above:
            self.document.errors.append(f"{mark}: {_dotted(path)} refers to itself")
            return None
        above = (*above, id(node))
        self.values += 1
        if self.values > _MOST_VALUES:
            raise _TooMuchError
        if len(above) > _DEEPEST:
            raise RecursionError
        if node.tag not in _PLAIN_TAGS:
            self.document.errors.append(f"{mark}: {_dotted(path)}: a tag ({node.tag}) means nothing here")
            if isinstance(node, yaml.ScalarNode):
                return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, above)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, i), above) for i, item in enumerate(node.value)]
        try:
            return self.loader.construct_object(node)
        except (yaml.YAMLError, ValueError, KeyError) as error:  # such as `!!bool maybe`
            problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error)
            kind = node.tag.rpartition(":")[2]
            self.document.errors.append(f"{mark}: {_dotted(path)} cannot be read as {kind}: {problem}")
            return None

    def _mapping(self, node: yaml.MappingNode, path: Path, above: tuple[int, ...]) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                sources = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for source in reversed(sources):  # the first of several wins
                    values = self.read(source, path, above)
                    if isinstance(values, dict):
                        merged.update(values)
                    else:
                        self.document.errors.append(
                            f"{Mark(self.source, line)}: `<<` merges mappings, not {values!r}"
                        )
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self.document.errors.append(f"{Mark(self.source, line)}: a key must be a plain word")
                continue
            key = str(key_node.value)
            if key in own:
                self.document.errors.append(
                    f"{Mark(self.source, line)}: {_dotted((*path, key))} is written twice "
                    f"(first on line {lines[key]}); only one can count"
                )
                continue
            lines[key] = line
            own[key] = self.read(value_node, (*path, key), above)
            # An error about a key points at the key, also where its value starts further down.
            self.document.marks[(*path, key)] = Mark(self.source, line)
        return {**merged, **own}


def _overlay(
    below: Any, above: Any, above_marks: Mapping[Path, Mark], marks: dict[Path, Mark], path: Path
) -> Any:
    if isinstance(below, dict) and isinstance(above, dict) and not (_is_single(below) or _is_single(above)):
        if path in above_marks:
            marks.setdefault(path, above_marks[path])
        merged = dict(below)
        for key, value in above.items():
            merged[key] = _overlay(below.get(key), value, above_marks, marks, (*path, key))
        return merged
    for gone in [p for p in marks if p[: len(path)] == path and p != path]:
        del marks[gone]
    marks.update({p: m for p, m in above_marks.items() if p[: len(path)] == path})
    return above


def _is_single(value: dict[str, Any]) -> bool:
    """A sampler such as `{grid_search: [...]}` is one value: it is replaced, never merged into."""
    return len(value) == 1 and next(iter(value)) in SAMPLER_NAMES


SAMPLER_NAMES = (
    "grid_search", "choice", "uniform", "quniform", "loguniform", "qloguniform", "randn", "qrandn",
    "randint", "qrandint", "lograndint", "qlograndint",
)  # fmt: skip


def _dotted(path: Path) -> str:
    return ".".join(map(str, path)) or "the document"
