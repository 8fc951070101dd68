"""A run's folder belongs to one process at a time: two would write over each other's checkpoints."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rllib_vlm.errors import RLlibVLMError


@contextmanager
def held(folder: str | Path) -> Iterator[None]:
    """Keeps every other process from training in `folder`, which is made; a URI is nobody's.

    The lock is the kernel's, on the folder itself: it ends with the process that has it, however that ends, and leaves
    no file.

    Raises:
        RLlibVLMError: another process has it.
        OSError: it cannot be made or opened.
    """
    if isinstance(folder, str):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RLlibVLMError(
            f"{folder} is in use: another process trains in it. Wait for its end, or end it, and --resume; "
            "or take another --name."
        ) from error
    except OSError:  # some network file systems lock no folders
        return
