"""The language model's layers, spelled out over transformers' own modules.

transformers' forward serves every model and every cache there is; a tiny model spends much of its
time in that machinery. These functions call the same linear layers with the same parameters, and
leave to the caller what a query attends to. Tests hold them to transformers' own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

# (layer index, q [B, H, L, d], k [B, G, L, d], v [B, G, L, d]) -> [B, H, L, d]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def rms_norm(norm: Any, x: Tensor) -> Tensor:
    """Root-mean-square norm in float32 (Zhang & Sennrich 2019, arXiv 1910.07467)."""
    if x.dtype == torch.float32:
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
    return norm(x)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `x` [..., d] by angles whose cosines and sines are [..., d / 2].

    Source: Su et al. 2021, arXiv 2104.09864; halves paired as in GPT-NeoX.
    """
    a, b = x.chunk(2, -1)
    return torch.cat([torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)], -1)


def angles(language: Any, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, L, 1, d / 2] for positions [3, B, L]."""
    cos, sin = language.rotary_emb(like, positions)
    half = cos.shape[-1] // 2
    return cos[..., None, :half], sin[..., None, :half]


def run_layers(
    language: Any,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    attend: Attend,
    *,
    checkpoint: bool = False,
    read: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Last hidden states of embeddings `x` [B, L, D], the final norm included, and those after half of the layers.

    Args:
        read: int64 [n], places of L whose last states are wanted, which are then [B, n, D]: nobody looks at what the
            last layer makes of the others, once it has attended to them.
    """
    middle = x
    for i, layer in enumerate(language.layers):
        if i == len(language.layers) // 2:
            middle = x
        wanted = read if i == len(language.layers) - 1 else None
        arguments = (layer, i, x, cos, sin, attend, wanted)
        if checkpoint and torch.is_grad_enabled():
            x = torch.utils.checkpoint.checkpoint(_layer, *arguments, use_reentrant=False)
        else:
            x = _layer(*arguments)
    return rms_norm(language.norm, x), middle


def _layer(
    layer: nn.Module, i: int, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, read: Tensor | None
) -> Tensor:
    attention: Any = layer.self_attn
    h = rms_norm(layer.input_layernorm, x)
    heads = (-1, attention.head_dim)
    q = rotate(attention.q_proj(h).unflatten(-1, heads), cos, sin).transpose(1, 2)
    k = rotate(attention.k_proj(h).unflatten(-1, heads), cos, sin).transpose(1, 2)
    v = attention.v_proj(h).unflatten(-1, heads).transpose(1, 2)
    out = attend(i, q, k, v).transpose(1, 2).flatten(2)
    if read is not None:
        x, out = x.index_select(1, read), out.index_select(1, read)
    x = x + attention.o_proj(out)
    mlp: Any = layer.mlp
    h = rms_norm(layer.post_attention_layernorm, x)
    return x + mlp.down_proj(mlp.act_fn(mlp.gate_proj(h)) * mlp.up_proj(h))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of H query heads over G key heads; without a mask it is causal.

    Args:
        q: [B, H, L, d].
        k: [B, G, S, d].
        v: [B, G, S, d].
        mask: additive [B or 1, 1, L, S], or None for L = S and causal.
    """
    grouped = mask is None or q.device.type == "cpu"  # CUDA's fast kernels take groups only unmasked
    if q.shape[1] != k.shape[1] and not grouped:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    return dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1])


def dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **kwargs: Any
) -> Tensor:
    """Torch's own; under autocast on a CPU in float32, where its bfloat16 backward is three times slower."""
    if q.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **kwargs)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask, **kwargs)


def segment_mask(segment_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, L, L] that keeps segments apart, for forwards that know only masks."""
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    allowed = same.tril()  # padding sees padding, so no row of the softmax is empty
    mask = torch.zeros(allowed.shape, dtype=dtype, device=segment_ids.device)
    return mask.masked_fill_(~allowed, -torch.inf).unsqueeze(1)
