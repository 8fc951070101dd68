"""Files and folders that are either the old ones or the new ones, never half of them."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by `text`, on disk when this returns.

    Raises:
        OSError: the disk is full or fails; what was there before still is.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replaces `path` by `value` in JSON, like `write_text`."""
    write_text(path, json.dumps(value, indent=2))


def append_json_line(
    path: Path, value: Mapping[str, Any], *, encoder: type[json.JSONEncoder] | None = None
) -> None:
    """Adds one line of JSON to `path`, which is made where it is missing.

    Raises:
        OSError: the disk is full or fails; nothing of the line is there then.
    """
    line = (json.dumps(value, cls=encoder) + "\n").encode()
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if file.write(line) < len(line):
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which is `path` at the end, or leaves nothing behind where anything goes wrong.

    What stood at `path` before is replaced. The files in it are for the caller to bring to the disk; their names are
    on it when this returns.

    Raises:
        OSError: the disk is full or fails.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for folder, _, _ in os.walk(temporary):
            _sync(Path(folder))
        if path.exists():
            remove_folder(path)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(path.parent)


def remove_folder(path: Path) -> None:
    """Removes the folder `path`, which has its name as long as all of it is there.

    A process that is killed meanwhile leaves a part of it under a name like those of `new_folder` that begin with a
    dot and end with `.tmp`, and never half a folder that passes for a damaged one. What cannot be removed stays.
    """
    going = path.with_name(f".{path.name}.going.tmp")
    shutil.rmtree(going, ignore_errors=True)
    try:
        path.rename(going)
    except OSError as error:
        if path.exists():
            logger.error("%s could not be removed (%s).", path, error)
    shutil.rmtree(going, ignore_errors=True)


@contextmanager
def or_go_on(what: str) -> Iterator[None]:
    """A record that cannot be written, as on a full disk, is told of and ends nothing."""
    try:
        yield
    except OSError as error:
        logger.error("%s could not be written (%s). The run goes on without it.", what, error)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
