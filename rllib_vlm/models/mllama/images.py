"""Images on their way into the vision tower: onto a canvas of square tiles, and cut into those.

Numbers equal those of transformers' Mllama image processor (its PIL form). A picture's final size is its whole canvas,
black where the picture does not reach, so that its size alone says how it is tiled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from rllib_vlm.errors import ModelError
from rllib_vlm.types import Image


@dataclass(frozen=True)
class ImageFormat:
    """How pictures are tiled, and the statistics their pixels are normalised by."""

    tile: int = 560  # pixels along a side
    max_tiles: int = 4
    mean: tuple[float, ...] = tuple(OPENAI_CLIP_MEAN)
    std: tuple[float, ...] = tuple(OPENAI_CLIP_STD)

    @cached_property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of every canvas; a canvas' aspect-ratio id is its place here, from 1."""
        sides = range(1, self.max_tiles + 1)
        return tuple((r, c) for r in sides for c in sides if r * c <= self.max_tiles)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The canvas of a picture: the one that enlarges it least, or else shrinks it least; of equals the smallest.

        Source: `get_optimal_tiled_canvas` of transformers' Mllama image processor.
        """
        scales = {(r, c): min(r * self.tile / height, c * self.tile / width) for r, c in self.grids}
        enlarging = [scale for scale in scales.values() if scale >= 1]
        best = min(enlarging) if enlarging else max(scales.values())
        return min((g for g in self.grids if scales[g] == best), key=lambda g: g[0] * g[1])

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """The size (height, width) of a picture on its canvas; no picture grows beyond a tile's side.

        Source: `get_image_size_fit_to_canvas` of transformers' Mllama image processor.
        """
        rows, columns = self.grid(height, width)
        high = min(max(height, self.tile), rows * self.tile)
        wide = min(max(width, self.tile), columns * self.tile)
        if wide / width < high / height:
            return min(max(math.floor(height * (wide / width)), 1), high), wide
        return high, min(max(math.floor(width * (high / height)), 1), wide)

    def resize(self, image: Image) -> Image:
        """[rows * tile, columns * tile, 3]: the canvas with the picture in its upper left corner, bilinear.

        A picture that is a canvas already stays untouched.

        Raises:
            ModelError: not a uint8 RGB picture, or one without pixels.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ModelError(
                f"an image must be a uint8 array [H, W, 3], not {image.dtype} {list(image.shape)}"
            )
        height, width = image.shape[:2]
        rows, columns = self.grid(height, width)
        high, wide = self.fit(height, width)
        if (high, wide) != (height, width):
            picture = PIL.Image.fromarray(image).resize((wide, high), PIL.Image.Resampling.BILINEAR)
            image = np.asarray(picture)
        if (high, wide) == (rows * self.tile, columns * self.tile):
            return image
        canvas = np.zeros((rows * self.tile, columns * self.tile, 3), np.uint8)
        canvas[:high, :wide] = image
        return canvas

    def grid_of(self, canvas: Sequence[int]) -> tuple[int, int]:
        """Tiles (rows, columns) of a canvas of this (height, width).

        Raises:
            ModelError: no canvas has this size.
        """
        grid = (canvas[0] // self.tile, canvas[1] // self.tile)
        if grid not in self.grids or (grid[0] * self.tile, grid[1] * self.tile) != (canvas[0], canvas[1]):
            raise ModelError(
                f"an image of {canvas[0]} x {canvas[1]} pixels is no canvas of {self.tile}-pixel tiles, at most"
                f" {self.max_tiles}: images must be at their final size"
            )
        return grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Pictures as the vision tower reads them."""

    pixels: Tensor  # float32 [N, tiles, 3, tile, tile], normalised; 0 where a picture has no more tiles
    ratio_ids: Tensor  # int64 [N]
    counts: Tensor  # int64 [N] tiles of each picture


def cut(canvases: Sequence[Tensor], form: ImageFormat) -> Tiles:
    """Tiles of pictures, row by row.

    Args:
        canvases: uint8 [H, W, 3] each, at its final size.

    Raises:
        ModelError: a picture is not at its final size.
    """
    device, side = canvases[0].device, form.tile
    grids = [form.grid_of(canvas.shape) for canvas in canvases]
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (form.mean, form.std))
    pixels = torch.zeros(len(canvases), form.max_tiles, 3, side, side, device=device)
    for i, (canvas, (rows, columns)) in enumerate(zip(canvases, grids, strict=True)):
        tiles = canvas.reshape(rows, side, columns, side, 3).permute(0, 2, 4, 1, 3)
        pixels[i, : rows * columns] = (tiles.flatten(0, 1).float() / 255.0 - mean) / std
    return Tiles(
        pixels=pixels,
        ratio_ids=torch.tensor([form.grids.index(grid) + 1 for grid in grids], device=device),
        counts=torch.tensor([rows * columns for rows, columns in grids], device=device),
    )
