"""`--set training.lr=1e-6` and `--stop training_iteration=3`: the command line on top of a file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rllib_vlm.config.document import Document, Mark, Path, parse_yaml
from rllib_vlm.config.schema import FRAME_KEYS


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
        if not separator or not all(keys):
            errors.append(f"--set {assignment}: write it as section.key=value, such as training.lr=1e-6")
            continue
        if keys[0] == "config":
            keys = keys[1:]
        if keys[0] in FRAME_KEYS:
            path: Path = tuple(keys) if keys[0] != "stop" else ("stop", ".".join(keys[1:]))
        else:
            path = ("config", *keys)
        if len(path) == 2 and path[0] == "config":
            errors.append(
                f"--set {assignment}: {keys[0]!r} needs its section before it, such as training.{keys[0]}"
            )
            continue
        value = parse_yaml(text, f"--set {name}")
        errors += value.errors
        document = document.overlay(_nest(path, value.data, Mark(f"--set {name}")))
    return document


def parse_stop(conditions: Iterable[str], errors: list[str]) -> dict[str, Any]:
    """`--stop` conditions: `training_iteration=3`, several of them, or one JSON or YAML mapping."""
    stop: dict[str, Any] = {}
    for condition in conditions:
        if condition.lstrip().startswith("{"):
            document = parse_yaml(condition, "--stop")
            errors += document.errors
            if isinstance(document.data, dict):
                stop.update(document.data)
            continue
        name, separator, text = condition.partition("=")
        value = parse_yaml(text, "--stop").data if separator else None
        if not name or not isinstance(value, int | float):
            errors.append(f"--stop {condition}: write it as metric=number, such as training_iteration=3")
            continue
        stop[name.strip()] = value
    return stop


def _nest(path: Path, value: Any, mark: Mark) -> Document:
    data = value
    for key in reversed(path):
        data = {key: data}
    # The root keeps its own mark, or every untouched value would seem to come from the command line.
    return Document(data, {path[:end]: mark for end in range(1, len(path) + 1)})
