"""Attention of new tokens to all tokens of their rows, each row's in a buffer of its own.

By kernels for one core of a CPU (`cached_attention.cpp`), which are compiled when the package is installed, as far as
there is a compiler.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_ENTRY = "rllib_vlm_attend_1"  # with the number of the layout of `_Problem`
_WIDTH = 32  # heads are as wide as that, or twice, and so on
_THREADS = 2  # of torch's; with more it is the faster one, which shares the work among them
_REASONS = {
    1: "there is no memory left",
    2: "this processor is not known",
    3: "a buffer is too small",
    4: "of some new tokens there are no queries",
}


class _Problem(ctypes.Structure):
    """As `Problem` in the sources."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "buffers", "capacity", "used", "count")),
        *((name, ctypes.c_int64) for name in ("B", "H", "G", "L", "N", "d", "layer")),
        *((f"{x}_{of}", ctypes.c_int64) for x in "qkv" for of in ("row", "token", "head")),
        ("scale", ctypes.c_float),
    ]


@cache
def _compiled() -> Any:
    """The compiled kernels; None where there are none, or none for this processor."""
    paths = [Path(__file__).with_name(f"_cached_attention{suffix}") for suffix in EXTENSION_SUFFIXES]
    return next((entry for path in paths if (entry := load(path)) is not None), None)


def load(path: Path) -> Any:
    """The kernels of a library; None where it is none for this system and processor, torn, or of older sources."""
    try:
        if not _whole(path):
            return None
        entry = getattr(ctypes.CDLL(str(path)), _ENTRY)
    except (OSError, AttributeError):
        return None
    entry.argtypes, entry.restype = [ctypes.POINTER(_Problem)], ctypes.c_int
    return entry if entry(_Problem(H=1, G=1)) == 0 else None  # of no rows


def _whole(path: Path) -> bool:
    """Whether a library is there to its end: loading what a broken installation left of one would end the process."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        header = file.read(64)
    if len(header) < 64:
        return False
    if header[:5] != b"\x7fELF\x02":
        return header[:4] != b"\x7fELF"  # of a system with other libraries
    sections, size, count = (
        int.from_bytes(header[at : at + n], sys.byteorder) for at, n in ((40, 8), (58, 2), (60, 2))
    )
    return path.stat().st_size >= sections + size * count


def compiled() -> bool:
    """Whether the kernels were compiled for a processor like this one."""
    return _compiled() is not None


def available(width: int, like: Tensor) -> bool:
    """Whether the kernels are there, and made for heads of this width and for numbers of the kind of `like`."""
    return (
        like.device.type == "cpu"
        and like.dtype == torch.float32
        and width % _WIDTH == 0
        and torch.get_num_threads() <= _THREADS
        and compiled()
    )


class Buffers:
    """Keys and values of B rows, float32 [layers, 2 G, C, d] each with the keys first, C as each row needs it.

    Args:
        pairs: of each row.
        used: tokens that are in each already.
    """

    def __init__(self, pairs: list[Tensor], used: list[int]) -> None:
        self.pairs = pairs
        self.used = torch.tensor(used, dtype=torch.int64)
        self._places = torch.tensor([own.data_ptr() for own in pairs], dtype=torch.int64)
        self._capacity = torch.tensor([own.shape[2] for own in pairs], dtype=torch.int64)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, count: Tensor) -> Tensor:
        """[B', H, L, d] of queries of the first B' rows, whose new keys and values are written behind those there are.

        Args:
            q: [B', H, L, d], of all new tokens, each of which sees those up to its own; or with L = 1 of each row's
                last one.
            k: [B', G, N, d], where H is a multiple of G.
            v: [B', G, N, d].
            count: int64 [B'], new tokens of each row, the first ones of N.

        Raises:
            RuntimeError: a row has no room left, or the machine no memory.
        """
        q, k, v = (
            x if x.dtype == torch.float32 and x.stride(-1) == 1 else x.float().contiguous() for x in (q, k, v)
        )
        (b, heads, tokens, d), (groups, new) = q.shape, k.shape[1:3]
        out = q.new_empty(b, tokens, heads, d)
        strides = [x.stride(at) for x in (q, k, v) for at in (0, 2, 1)]
        status = _compiled()(
            _Problem(
                q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), self._places.data_ptr(),
                self._capacity.data_ptr(), self.used.data_ptr(), count.data_ptr(),
                b, heads, groups, tokens, new, d, layer, *strides, d**-0.5,
            )
        )  # fmt: skip
        if status:
            raise RuntimeError(f"attention: {_REASONS[status]}")
        return out.transpose(1, 2)

    def select(self, rows: list[int]) -> None:
        """Keeps these rows."""
        self.pairs = [self.pairs[row] for row in rows]
        at = torch.tensor(rows, dtype=torch.int64)
        self.used, self._places, self._capacity = self.used[at], self._places[at], self._capacity[at]
