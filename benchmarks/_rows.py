"""Benchmarks that go on where they were: a line of JSON a run, in a file that says by which settings it was made."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rllib_vlm.errors import RLlibVLMError

RunT = TypeVar("RunT", bound=Hashable)


def read_rows(
    out: Path | None,
    make: Callable[..., RunT],
    keys: Sequence[str],
    settings: Callable[[RunT], dict[str, Any]],
) -> dict[RunT, dict[str, Any]]:
    """The runs that stand in `out`, which is made where it is not there; a torn last line is a run to make again.

    Args:
        out: the file, if there is one.
        make: a run, of the values under `keys`.
        keys: what names a run in its row; the rest of the row is what was found.
        settings: of a run, as this benchmark has them now.

    Raises:
        RLlibVLMError: a run was made with other settings, or `out` cannot be written.
    """
    found: dict[RunT, dict[str, Any]] = {}
    if out is None:
        return found
    try:  # before anything runs for minutes
        out.parent.mkdir(parents=True, exist_ok=True)
        out.open("a").close()
    except OSError as error:
        raise RLlibVLMError(f"out={out} cannot be written: {error.strerror}") from error
    for line in out.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            one = make(**{key: row.pop(key) for key in keys})
            known = settings(one)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if row.pop("settings", None) != known:
            raise RLlibVLMError(
                f"{out}: {one} was run with other settings than this benchmark has now; give another out="
            )
        found[one] = row
    return found
