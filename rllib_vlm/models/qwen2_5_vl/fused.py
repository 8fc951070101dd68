"""The language model's layers for sampling: fewer, larger products than its modules make.

A decoding step of a tiny model is overhead: a few dozen operations a layer of some microseconds each, on tensors
of a few rows. Here the projections that read the same input are one matrix, the rotary embedding's second half is
part of that matrix (a rotation is linear, so `rotated(W x) = rotated(W) x`), and attention's residual is added by the
product that follows. Same numbers, to float precision; tests hold them to the modules' own.

The matrices are copies, made anew for each batch of completions, so they are for models that are small beside
what sampling itself holds; others go through `decoder.run_layers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllib_vlm.models.qwen2_5_vl.cache import Cache
from rllib_vlm.models.qwen2_5_vl.decoder import Attend, rms_norm, rotate

_LARGEST = 32_000_000  # parameters of the layers; copies of more are not worth it


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """One layer's weights. N = (H + 2 G) d is the width of queries, keys and values together."""

    qkv: Tensor  # [2 N, D]: W, and behind it the rows that give the rotated halves
    bias: Tensor | None  # [2 N]
    out: Tensor  # [H d, D]
    gate_up: Tensor  # [2 I, D]
    down: Tensor  # [I, D]
    attention_norm: Any
    mlp_norm: Any


@dataclass(frozen=True, slots=True)
class FusedLayers:
    """The layers of a language model, for prompts (`run`) and for one more token each (`advance`)."""

    layers: Sequence[_Layer]
    embedding: Tensor  # [V, D]
    norm: Any
    heads: int
    groups: int
    head_dim: int

    @classmethod
    def of(cls, language: Any) -> FusedLayers | None:
        """Of transformers' Qwen2.5-VL language model as it is now; None where modules are more than plain linear
        layers (adapters) or the copies would be large.
        """
        config = language.config
        if sum(p.numel() for p in language.layers.parameters()) > _LARGEST:
            return None
        if not all(type(m) is nn.Linear for layer in language.layers for m in _linears(layer)):
            return None
        head_dim = language.layers[0].self_attn.head_dim
        return cls(
            [_fuse(layer, head_dim) for layer in language.layers],
            language.embed_tokens.weight,
            language.norm,
            config.num_attention_heads,
            config.num_key_value_heads,
            head_dim,
        )

    def run(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, read: Tensor) -> Tensor:
        """States [B, D] of one token a row, final norm included, of embeddings `x` [B, L, D]; see `decoder.run_layers`.

        In the last layer all tokens get keys and values, and only what is read goes on from there.

        Args:
            cos: [B, L, 1, d / 2], as of `decoder.angles`.
            sin: the same.
            attend: what queries attend to; in the last layer those of the tokens read, [B, H, 1, d].
            read: int64 [B], the place in L of each row's token.
        """
        heads, groups, d = self.heads, self.groups, self.head_dim
        rows = torch.arange(len(x), device=x.device)
        for i, layer in enumerate(self.layers):
            h = rms_norm(layer.attention_norm, x)
            if i < len(self.layers) - 1:
                qkv = self._project(layer, h, 0, heads + 2 * groups)
                qk = rotate(qkv[:, :, : heads + groups], cos, sin)
                q, k, v = qk[:, :, :heads], qk[:, :, heads:], qkv[:, :, heads + groups :]
            else:
                kv = self._project(layer, h, heads, heads + 2 * groups)
                k, v = rotate(kv[:, :, :groups], cos, sin), kv[:, :, groups:]
                x, h, cos, sin = (a[rows, read][:, None] for a in (x, h, cos, sin))
                q = rotate(self._project(layer, h, 0, heads), cos, sin)
            out = attend(i, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
            x = x + out.transpose(1, 2).reshape(*x.shape[:2], heads * d) @ layer.out
            x = x + _mlp(layer, rms_norm(layer.mlp_norm, x))
        return rms_norm(self.norm, x)[:, 0]

    def _project(self, layer: _Layer, h: Tensor, first: int, last: int) -> Tensor:
        """Those heads [B, L, last - first, d] of a layer's queries, keys and values, of states `h` [B, L, D]."""
        rows = slice(first * self.head_dim, last * self.head_dim)
        bias = None if layer.bias is None else layer.bias[rows]
        return F.linear(h, layer.qkv[rows], bias).unflatten(-1, (-1, self.head_dim))

    def turns(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Angles [B, T, 1, d / 2] as `advance` takes them, [T, B, N]; values turn by none."""
        heads = self.heads + self.groups
        wide = [a[:, :, 0].transpose(0, 1).repeat(1, 1, 2 * heads) for a in (cos, sin)]
        values = (*wide[0].shape[:2], self.groups * self.head_dim)
        return torch.cat([wide[0], cos.new_ones(values)], -1), torch.cat([wide[1], sin.new_zeros(values)], -1)

    def advance(self, ids: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        """Hidden states [B, D] behind one more token each, which the cache expects.

        Args:
            ids: int64 [B].
            cos: [B, N] of this step, from `turns`.
            sin: the same.
        """
        x = F.embedding(ids, self.embedding)
        b, width = len(ids), cos.shape[-1]
        heads = (self.heads, self.groups, self.groups)
        for i, layer in enumerate(self.layers):
            y = F.linear(rms_norm(layer.attention_norm, x), layer.qkv, layer.bias)
            y = torch.addcmul(y[:, :width] * cos, y[:, width:], sin)
            out = cache.attend(i, *y.view(b, -1, 1, self.head_dim).split(heads, 1))
            x = torch.addmm(x, out.reshape(b, -1), layer.out)
            x = x + _mlp(layer, rms_norm(layer.mlp_norm, x))
        return rms_norm(self.norm, x)


def _mlp(layer: _Layer, h: Tensor) -> Tensor:
    gate, up = F.linear(h, layer.gate_up).chunk(2, -1)
    return F.silu(gate, inplace=True).mul_(up) @ layer.down


def _linears(layer: Any) -> list[Any]:
    attention, mlp = layer.self_attn, layer.mlp
    projections = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    return [*projections, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def _fuse(layer: Any, head_dim: int) -> _Layer:
    q, k, v, out, gate, up, down = _linears(layer)
    weight = torch.cat([m.weight for m in (q, k, v)])
    rotated = [_rotated(m.weight, head_dim) for m in (q, k)]
    bias = None
    if q.bias is not None:
        biases = [_rotated(m.bias[:, None], head_dim)[:, 0] for m in (q, k)]
        bias = torch.cat([q.bias, k.bias, v.bias, *biases, torch.zeros_like(v.bias)])
    return _Layer(
        qkv=torch.cat([weight, *rotated, torch.zeros_like(v.weight)]),
        bias=bias,
        out=out.weight.t(),
        gate_up=torch.cat([gate.weight, up.weight]),
        down=down.weight.t(),
        attention_norm=layer.input_layernorm,
        mlp_norm=layer.post_attention_layernorm,
    )


def _rotated(rows: Tensor, head_dim: int) -> Tensor:
    """Of rows [n d, D] that give n heads of halves (a, b), those that give (-b, a)."""
    a, b = rows.view(-1, 2, head_dim // 2, rows.shape[-1]).unbind(1)
    return torch.stack([-b, a], 1).reshape(rows.shape)
