"""Memory that nothing uses goes back to the machine."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def give_back() -> None:
    """Hands free pages of this process back to the system; does nothing where the C library cannot.

    Tensors of ever other sizes leave holes that glibc keeps for later and seldom fits again: a process that learns or
    samples grows by some tens of MB an update, for hours. A call takes some milliseconds.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """`malloc_trim(3)` of glibc; None with another C library."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None
