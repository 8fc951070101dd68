"""Files that are either the old ones or the new ones, never half of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replaces `path` by `value` in JSON, on disk when this returns."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def append_json_line(path: Path, value: Mapping[str, Any]) -> None:
    """Adds one line of JSON to `path`, which is made where it is missing."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")
