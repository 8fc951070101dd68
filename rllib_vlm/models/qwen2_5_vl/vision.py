"""The vision tower over batches of small pictures.

transformers runs all pictures as one long sequence and calls attention once per picture and
window, which for a rollout's hundreds of small frames is mostly overhead. Here pictures of one
size form a batch, windows are a mask, and a still picture's repeated frame is folded into the
patch embedding's weight. It is the same module with the same parameters and, to float precision,
the same numbers; pictures above `_LARGE` patches go the module's own way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from rllib_vlm.models.qwen2_5_vl.decoder import dot_product_attention, rms_norm, rotate
from rllib_vlm.models.qwen2_5_vl.images import ImageFormat, patchify, repeat_frames

_LARGE = 1024  # patches a picture; beyond it a dense window mask costs more than it saves
_AT_ONCE = 2048  # patches, on a CPU; what a layer makes of more leaves its cache before the next reads it


def image_features(
    visual: Any,
    groups: Sequence[tuple[Tensor, Tensor]],
    form: ImageFormat,
    *,
    plain: bool = False,
    checkpoint: bool = False,
) -> Tensor:
    """[sum of image tokens, D] features of all pictures, in their order.

    Args:
        visual: transformers' Qwen2.5-VL vision tower.
        groups: pictures by size: (order [n] of the pictures, uint8 [n, H, W, 3]).
        plain: run the module's own forward (for sharded parameters, and as the reference of tests).
        checkpoint: recompute blocks in the backward pass instead of keeping their activations.
    """
    dtype = visual.patch_embed.proj.weight.dtype
    features: list[Tensor] = []  # one [n, T, D] a group
    for _, images in groups:
        grid = (images.shape[1] // form.patch, images.shape[2] // form.patch)
        size = grid[0] * grid[1]
        if plain or size > _LARGE:
            pixels = repeat_frames(patchify(images, form, dtype=dtype), form).flatten(0, 1)
            grids = torch.tensor([(1, *grid)] * len(images), device=images.device)
            out = visual(pixels, grid_thw=grids).pooler_output.view(
                len(images), -1, visual.config.out_hidden_size
            )
        else:
            parts = images.split(max(1, _AT_ONCE // size)) if images.device.type == "cpu" else [images]
            out = torch.cat(
                [_tower(visual, patchify(part, form, dtype=dtype), grid, form, checkpoint) for part in parts]
            )
        features.append(out)
    if len(features) == 1:
        return features[0].flatten(0, 1)
    pieces: dict[int, Tensor] = {}
    for (order, _), feature in zip(groups, features, strict=True):
        pieces.update(zip(order.tolist(), feature.unbind(0), strict=True))
    return torch.cat([pieces[i] for i in sorted(pieces)])


def _tower(
    visual: Any, patches: Tensor, grid: tuple[int, int], form: ImageFormat, checkpoint: bool
) -> Tensor:
    """[N, T, D] of `patches` [N, S, 3, p, p], all pictures of one size."""
    weight = visual.patch_embed.proj.weight.sum(2).flatten(1)
    x = F.linear(patches.flatten(2), weight)
    rows, columns, window = _layout(grid, form, visual.config.window_size)
    positions = torch.stack([rows, columns], -1).to(x.device)
    cos, sin = visual.rotary_pos_emb(x, positions)
    half = cos.shape[-1] // 2
    cos, sin = cos[None, :, None, :half].to(x.dtype), sin[None, :, None, :half].to(x.dtype)
    same_window = window[:, None] == window[None, :]
    windowed = None if bool(same_window.all()) else same_window.to(x.device)
    for i, block in enumerate(visual.blocks):
        mask = None if i in visual.fullatt_block_indexes else windowed
        if checkpoint and torch.is_grad_enabled():
            x = torch.utils.checkpoint.checkpoint(_block, block, x, cos, sin, mask, use_reentrant=False)
        else:
            x = _block(block, x, cos, sin, mask)
    merger = visual.merger
    return merger.mlp(rms_norm(merger.ln_q, x).view(len(x), -1, merger.hidden_size))


def _block(block: nn.Module, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
    attention: Any = block.attn
    n, size, width = x.shape
    qkv = attention.qkv(rms_norm(block.norm1, x)).view(n, size, 3, attention.num_heads, -1)
    qk = rotate(qkv[:, :, :2].flatten(2, 3), cos, sin)
    q, k = qk[:, :, : attention.num_heads], qk[:, :, attention.num_heads :]
    out = dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), qkv[:, :, 2].transpose(1, 2), mask)
    x = x + attention.proj(out.transpose(1, 2).reshape(n, size, width))
    mlp: Any = block.mlp
    h = rms_norm(block.norm2, x)
    return x + mlp.down_proj(mlp.act_fn(mlp.gate_proj(h)) * mlp.up_proj(h))


@lru_cache(maxsize=256)
def _layout(grid: tuple[int, int], form: ImageFormat, window_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and attention window of each patch [S], in `patchify`'s order."""
    height, width = grid
    m = form.merge

    def blocks(values: Tensor) -> Tensor:
        return values.view(height // m, m, width // m, m).transpose(1, 2).flatten()

    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    side = window_size // m // form.patch * m
    window = (row // side) * (width // side + 1) + column // side
    return blocks(row.contiguous()), blocks(column.contiguous()), blocks(window)
