"""Images on their way into the vision tower: their final size, and their patches.

Numbers equal those of transformers' Qwen2-VL image processor (its PIL form), which is built for
single pictures from disk; here whole batches of uint8 frames become patches in a few tensor ops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from rllib_vlm.errors import ModelError
from rllib_vlm.types import Image

# Mean and standard deviation of CLIP's images, which all Qwen-VL models are trained with.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFormat:
    """How pictures are cut: the sizes a vision tower was built with, and the limits of a picture."""

    patch: int = 14  # pixels
    merge: int = 2  # patches per image token, along each side
    temporal: int = 2  # frames a patch spans; a still picture is repeated
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @property
    def unit(self) -> int:
        """Side of an image token, pixels."""
        return self.patch * self.merge

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """The size (height, width) a picture gets: multiples of `unit` within the pixel limits.

        Source: `smart_resize` of transformers' Qwen2-VL image processor.

        Raises:
            ModelError: one side is more than 200 times the other, or there is no picture.
        """
        if min(height, width) < 1 or max(height, width) > 200 * min(height, width):
            raise ModelError(
                f"an image of {height} x {width} pixels cannot be shown: sides may differ 200-fold at most"
            )
        unit = self.unit
        high, wide = round(height / unit) * unit, round(width / unit) * unit
        if high * wide > self.max_pixels:
            scale = math.sqrt(height * width / self.max_pixels)
            high = max(unit, math.floor(height / scale / unit) * unit)
            wide = max(unit, math.floor(width / scale / unit) * unit)
        elif high * wide < self.min_pixels:
            scale = math.sqrt(self.min_pixels / (height * width))
            high = math.ceil(height * scale / unit) * unit
            wide = math.ceil(width * scale / unit) * unit
        return high, wide

    def tokens(self, height: int, width: int) -> int:
        """Image tokens of a picture of this final size."""
        return (height // self.unit) * (width // self.unit)

    def resize(self, image: Image) -> Image:
        """[H, W, 3] at its final size; bicubic, and untouched where the size is right already.

        Raises:
            ModelError: not a uint8 RGB picture, or of impossible proportions.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ModelError(
                f"an image must be a uint8 array [H, W, 3], not {image.dtype} {list(image.shape)}"
            )
        high, wide = self.fit(image.shape[0], image.shape[1])
        if image.shape[:2] == (high, wide):
            return image
        picture = PIL.Image.fromarray(image).resize((wide, high), PIL.Image.Resampling.BICUBIC)
        return np.asarray(picture)


def patchify(images: Tensor, form: ImageFormat, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalised patches [N, S, 3, patch, patch] of equally large pictures, in the tower's order.

    The `merge` x `merge` patches of one image token stand together. The temporal axis is left out,
    since a still picture repeats itself there: see `repeat_frames`.

    Args:
        images: uint8 [N, H, W, 3], H and W multiples of `form.unit`.
    """
    n, height, width, _ = images.shape
    p, m = form.patch, form.merge
    # Patches are cut from bytes, which is a quarter of the traffic of cutting them from floats.
    blocks = images.reshape(n, height // (p * m), m, p, width // (p * m), m, p, 3)
    blocks = blocks.permute(0, 1, 4, 2, 5, 7, 3, 6)  # [N, gh, gw, m, m, 3, p, p]
    patches = blocks.reshape(n, (height // p) * (width // p), 3, p * p).to(torch.float32)
    # 1/255, mean and std in one multiplication and one addition.
    std = torch.tensor(form.std, dtype=torch.float64)
    scale, shift = 1.0 / (255.0 * std), -torch.tensor(form.mean, dtype=torch.float64) / std
    patches.mul_(scale.to(patches)[:, None]).add_(shift.to(patches)[:, None])
    return patches.to(dtype).view(n, -1, 3, p, p)


def repeat_frames(patches: Tensor, form: ImageFormat) -> Tensor:
    """[N, S, 3 * temporal * patch * patch] of `patchify`'s result, as transformers lays it out."""
    n, s, c, p, _ = patches.shape
    return patches.unsqueeze(3).expand(n, s, c, form.temporal, p, p).reshape(n, s, -1)
