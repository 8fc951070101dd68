"""Memory that nothing uses goes back to the machine, and is not written before it is used."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from functools import cache

import torch

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


def leave_unwritten() -> None:
    """New tensors hold what their memory held; under deterministic algorithms torch fills each with NaN first.

    RLlib asks for these where it is given a seed. The fills are for finding code that reads what it has not written,
    change no result of any other, and take a twentieth of a small model's training on a processor.
    """
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """`malloc_trim(3)` of glibc; None with another C library."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None
