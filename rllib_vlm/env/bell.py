"""A bell between threads: rung by one, heard by another that waits for pipes."""

from __future__ import annotations

import contextlib
from multiprocessing.connection import Pipe
from typing import Any


class Bell:
    """Something that `multiprocessing.connection.wait` finds ready once it was rung, until it is hushed."""

    def __init__(self) -> None:
        self.connection, self._rope = Pipe(duplex=False)

    def ring(self, *_: Any) -> None:
        """Takes, and ignores, what `Future.add_done_callback` gives."""
        with contextlib.suppress(OSError):  # nobody listens any more
            self._rope.send_bytes(b"!")

    def hush(self) -> None:
        while self.connection.poll():
            self.connection.recv_bytes()

    def close(self) -> None:
        self.connection.close()
        self._rope.close()
