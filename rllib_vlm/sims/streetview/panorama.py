"""Four perspective views of an equirectangular panorama, as one 2x2 picture.

A camera that looks to the horizon sees one panorama column per picture column, whichever way it faces: turning
is a shift of columns. So one map serves every heading, and a picture is two linear interpolations: along rows
once per picture column, then along columns once per pixel. Three colours are interpolated at a time, as
16-bit lanes of one 64-bit number; weights of 8 bits cannot carry over into the next lane. (Lanes are read back
byte by byte, lowest first: all machines that torch and mujoco have wheels for are little-endian.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rllib_vlm.types import Image

GAP = 5  # black pixels between the views
_ONE = np.uint64(256)  # weights are whole 256ths
_LANES = np.uint64(0x00FF_00FF_00FF)
_HALF = np.uint64(0x0080_0080_0080)
_EIGHT = np.uint64(8)

# Headings of the four views relative to the walker's, row by row.
TRUE_VIEWS = (0.0, 90.0, 180.0, 270.0)  # [front, right / back, left]
ORIGINAL_VIEWS = (-135.0, -45.0, 45.0, 135.0)  # [left behind, left front / right front, right behind]


@dataclass(frozen=True, slots=True)
class Panorama:
    """A decoded panorama.

    `pixels` [H, W, 3] RGB covers 360 x 180 degrees. Heading h stands at the column (h + rotation) / 360 * W.
    """

    pixels: Image
    rotation: float


@dataclass(frozen=True, slots=True)
class _Map:
    """Where the pixels of one square view with 90 degrees of view lie in a panorama of one size."""

    column: NDArray[np.float64]  # [R] panorama columns from the view's middle
    first: int  # rows that any view shows: first to last
    last: int
    index: NDArray[np.intp]  # [R, R] into the view's columns [R, rows], rows counted from `first`
    next_index: NDArray[np.intp]  # [R, R] the pixel below
    weight: NDArray[np.uint64]  # [R, R] of the row below, in 256ths


class GridRenderer:
    """Renders 2x2 grids.

    Args:
        resolution: pixels of one view's side; the grid has twice that and a gap.
        original: V-IRL's geometry, in which the panorama's last column is its first one again.
    """

    def __init__(self, resolution: int, *, original: bool = False) -> None:
        self.resolution = resolution
        self.original = original
        self._scratch: dict[str, tuple[NDArray[np.uint64], NDArray[np.uint64]]] = {}

    @property
    def side(self) -> int:
        """Pixels of the grid's side."""
        return 2 * self.resolution + GAP

    def render(self, panorama: Panorama, headings: Sequence[float]) -> Image:
        """`[side, side, 3]` RGB: the views at the four `headings` (degrees), row by row."""
        height, width = panorama.pixels.shape[:2]
        found = _view_map(height, width, self.resolution, self.original)
        period = width - 1 if self.original else width
        band = packed(panorama.pixels[found.first : found.last + 1])
        R, step = self.resolution, self.resolution + GAP
        columns, column = self._buffers("columns", (R, band.shape[1]))
        view, below = self._buffers("view", (R, R))
        canvas = np.zeros((self.side, self.side, 3), np.uint8)
        for number, heading in enumerate(headings):
            middle = (heading + panorama.rotation) / 360.0 * period - (0.0 if self.original else 0.5)
            x = (middle + found.column) % period
            left = np.floor(x).astype(np.intp)
            weight = np.rint((x - left) * 256).astype(np.uint64)[:, None]
            band.take(left % width, axis=0, out=columns, mode="clip")
            band.take((left + 1) % width, axis=0, out=column, mode="clip")
            mix(columns, column, weight, keep_lanes=True)
            flat = columns.reshape(-1)
            flat.take(found.index, out=view, mode="clip")
            flat.take(found.next_index, out=below, mode="clip")
            mix(view, below, found.weight)
            top, start = step * (number // 2), step * (number % 2)
            colours = view.view(np.uint8).reshape(R, R, 8)
            for colour in range(3):
                canvas[top : top + R, start : start + R, colour] = colours[..., 2 * colour + 1]
        return canvas

    def _buffers(self, name: str, shape: tuple[int, int]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Two arrays that are written anew each time: fresh memory costs more here than the arithmetic."""
        if name not in self._scratch or self._scratch[name][0].shape != shape:
            self._scratch[name] = (np.empty(shape, np.uint64), np.empty(shape, np.uint64))
        return self._scratch[name]


@lru_cache(maxsize=32)
def _view_map(height: int, width: int, resolution: int, original: bool) -> _Map:
    """The pinhole camera of V-IRL: focal length half a side, centre in the middle of the picture."""
    offset = (np.arange(resolution) - (resolution - 1) / 2.0) / (resolution / 2.0)
    longitude = np.arctan(offset)
    latitude = np.arctan(offset[:, None] * np.cos(longitude))  # [R, R], down is positive
    columns, rows = (width - 1, height - 1) if original else (width, height)
    y = (latitude / np.pi + 0.5) * rows - (0.0 if original else 0.5)
    y = np.clip(y, 0.0, height - 1.0)
    above = np.minimum(np.floor(y).astype(np.int32), max(height - 2, 0))
    first, last = int(above.min()), min(int(above.max()) + 1, height - 1)
    index = (above - first) + np.arange(resolution) * (last - first + 1)
    return _Map(
        column=longitude / (2.0 * np.pi) * columns,
        first=first,
        last=last,
        index=index,
        next_index=index + 1,
        weight=np.rint((y - above) * 256).astype(np.uint64),
    )


def packed(pixels: Image) -> NDArray[np.uint64]:
    """`[rows, W, 3]` bytes as `[W, rows]` numbers with a colour in every 16 bits; columns lie together."""
    rows, width = pixels.shape[:2]
    wide = np.zeros((width, rows, 4), np.uint16)
    for colour in range(3):
        wide[..., colour] = pixels[..., colour].T
    return wide.view(np.uint64)[..., 0]


def mix(
    first: NDArray[np.uint64],
    second: NDArray[np.uint64],
    weight: NDArray[np.uint64],
    *,
    keep_lanes: bool = False,
) -> None:
    """Turns `first` into 256 times the mixture of both, in which `second` has `weight` 256ths.

    `second` is used up. With `keep_lanes`, `first` is rounded back to bytes in lanes, ready to be mixed again.
    """
    first *= _ONE - weight
    second *= weight
    first += second
    first += _HALF
    if keep_lanes:
        first >>= _EIGHT
        first &= _LANES
