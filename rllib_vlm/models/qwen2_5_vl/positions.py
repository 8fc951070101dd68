"""Rotary positions of text and image tokens (multimodal RoPE), for whole batches at once.

Text advances all three axes (time, height, width) by one a token. An image stands still in time
and spreads over height and width; what follows it goes on after its longer side. Packed segments
each count from 0. Source: `get_rope_index` of transformers' Qwen2.5-VL, which loops over rows, and
falls back to one axis silently where it is not told which tokens are images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rllib_vlm.errors import ModelError


def rope_positions(is_image: Tensor, segment_ids: Tensor, grids: Tensor, rows: Tensor) -> Tensor:
    """[3, B, L] positions.

    Args:
        is_image: bool [B, L], True on image tokens.
        segment_ids: int64 [B, L], 0 is padding.
        grids: int64 [N, 2], (height, width) of every image in image tokens, in the order of the batch.
        rows: int64 [N], the row of every image.

    Raises:
        ModelError: the image tokens of a row are not those of its images.
    """
    advance = torch.ones_like(segment_ids)
    in_image = torch.zeros_like(segment_ids)  # index of a token within its image
    width = torch.ones_like(segment_ids)
    if len(grids):
        counts = grids[:, 0] * grids[:, 1]
        wanted = torch.zeros(len(is_image), dtype=torch.int64, device=rows.device).index_add_(0, rows, counts)
        if not torch.equal(wanted, is_image.sum(1)):
            raise ModelError(_mismatch(wanted, is_image.sum(1)))
        # Image tokens in batch order are those of the images one after the other.
        image = torch.repeat_interleave(torch.arange(len(grids), device=counts.device), counts)
        k = torch.arange(len(image), device=counts.device) - (counts.cumsum(0) - counts)[image]
        last = k == counts[image] - 1
        advance[is_image] = torch.where(last, grids.amax(1)[image], 0)
        in_image[is_image] = k
        width[is_image] = grids[image, 1]
    elif bool(is_image.any()):
        raise ModelError(_mismatch(torch.zeros_like(is_image.sum(1)), is_image.sum(1)))

    position = advance.cumsum(1) - advance
    fresh = torch.ones_like(is_image)
    fresh[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    start = torch.where(fresh, position, 0).cummax(1).values
    time = position - start
    return torch.stack([time, time + in_image // width, time + in_image % width])


def _mismatch(wanted: Tensor, got: Tensor) -> str:
    row = int((wanted != got).nonzero()[0])
    return (
        f"row {row} has {int(got[row])} image tokens but its images make {int(wanted[row])};"
        " images must stand in the order of their placeholders, at their final size"
    )
