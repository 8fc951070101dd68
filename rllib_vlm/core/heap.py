"""Memory that nothing uses goes back to the machine."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from functools import cache

_EVERY_S = 15.0
_last = -_EVERY_S


def give_back() -> None:
    """Hands free pages of this process back to the system, now and then; does nothing where the C library cannot.

    Tensors of ever other sizes leave holes that glibc keeps for later and seldom fits again: a process that learns or
    samples grows by some tens of MB an update, for hours. What is given back has to be taken anew, which short updates
    would feel each time, so that calls within 15 s of the last one do nothing.
    """
    global _last
    trim = _malloc_trim()
    if trim is None or time.monotonic() - _last < _EVERY_S:
        return
    trim(0)
    _last = time.monotonic()


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """`malloc_trim(3)` of glibc; None with another C library."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None
