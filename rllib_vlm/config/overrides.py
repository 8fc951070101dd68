"""`--set training.lr=1e-6` and `--stop training_iteration=3`: the command line on top of a file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rllib_vlm.config.document import Document, Mark, Path, parse_yaml
from rllib_vlm.config.schema import FRAME_KEYS, stop_problem


def parse_overrides(assignments: Iterable[str], errors: list[str]) -> Document:
    """`--set` assignments as a document shaped like an experiment.

    `training.lr=1e-6` sets a keyword of a section; a path that starts with a key of the frame
    (`num_samples=2`, `stop.training_iteration=3`, `checkpoint_config.num_to_keep=1`) sets that.
    Values are YAML, so lists, mappings and `{grid_search: [1e-6, 1e-5]}` work.
    """
    document = Document({}, {(): Mark("--set")})
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        keys = name.strip().split(".")
        if not separator or not all(keys) or keys == ["config"]:
            errors.append(f"--set {assignment}: write it as section.key=value, such as training.lr=1e-6")
            continue
        value = parse_yaml(text, f"--set {name}")
        if value.errors:
            errors += value.errors
            continue
        if keys[0] == "config" and len(keys) > 1:
            keys = keys[1:]
        path: Path = tuple(keys) if keys[0] in FRAME_KEYS else ("config", *keys)
        if path[0] == "stop" and len(path) > 1:  # metrics have dots and slashes of their own
            path = ("stop", ".".join(keys[1:]))
        if path[0] == "include":
            errors.append(f"--set {assignment}: what a file includes is written in the file")
            continue
        # A whole section, such as callbacks=[report], is fine.
        if len(path) == 2 and path[0] == "config" and not isinstance(value.data, dict | list):
            errors.append(
                f"--set {assignment}: {keys[0]!r} needs its section before it, such as training.{keys[0]}"
            )
            continue
        document = document.overlay(_nest(path, value.data, Mark(f"--set {name}")))
    return document


def parse_stop(conditions: Iterable[str], errors: list[str]) -> dict[str, Any]:
    """`--stop` conditions: `training_iteration=3`, several of them, or one JSON or YAML mapping."""
    stop: dict[str, Any] = {}
    for condition in conditions:
        if condition.lstrip().startswith("{"):
            document = parse_yaml(condition, "--stop")
            errors += document.errors
            found = document.data if isinstance(document.data, dict) else {}
        else:
            name, separator, text = condition.partition("=")
            found = {name.strip(): parse_yaml(text, "--stop").data if separator else None}
        for name, value in found.items():
            if not name or not isinstance(value, int | float) or value != value:
                errors.append(f"--stop {condition}: write it as metric=number, such as training_iteration=3")
            elif problem := stop_problem(name, value):
                errors.append(f"--stop {condition}: {problem}")
            else:
                stop[name] = value
    return stop


def _nest(path: Path, value: Any, mark: Mark) -> Document:
    data = value
    for key in reversed(path):
        data = {key: data}
    # The root keeps its own mark, or every untouched value would seem to come from the command line.
    return Document(data, {path[:end]: mark for end in range(1, len(path) + 1)})
