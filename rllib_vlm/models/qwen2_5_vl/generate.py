"""Sampling a batch of completions with a key-value cache.

Three things make it quick for many short answers to long prompts: the beginning that all prompts
share (system message, format, list of actions) is computed once; prompts stand left-aligned, so
prefill needs no padding mask; and a decoding step is a handful of tensor operations (`fused`) on a cache
allocated once, from which finished rows are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rllib_vlm.models.decoding import sample_completions
from rllib_vlm.models.qwen2_5_vl.cache import Cache
from rllib_vlm.models.qwen2_5_vl.decoder import Attend, angles, attend, run_layers
from rllib_vlm.models.qwen2_5_vl.fused import FusedLayers
from rllib_vlm.types import SamplingParams

_MIN_SHARED = 16  # tokens; a shorter common prefix is not worth a pass of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """A batch of prompts, left-aligned and padded on the right."""

    lengths: Tensor  # int64 [B]
    embeddings: Tensor  # [B, P, D], image features in place
    positions: Tensor  # int64 [3, B, P]
    shared: int  # tokens that all prompts begin with, text only


def shared_prefix(token_ids: Sequence[NDArray[np.int64]], image_token: int) -> int:
    """Tokens that all prompts begin with, up to the first image and short of the last token."""
    if len(token_ids) < 2:
        return 0
    size = min(len(ids) for ids in token_ids) - 1
    stack = np.stack([ids[:size] for ids in token_ids])
    differs = (stack != stack[0]).any(0) | (stack[0] == image_token)
    shared = int(differs.argmax()) if differs.any() else size
    return shared if shared >= _MIN_SHARED else 0


@torch.no_grad()
def sample_batch(
    language: Any,
    prefill: Prefill,
    logits: Callable[[Tensor], Tensor],
    sampling: SamplingParams,
    stop_ids: Sequence[int],
    stops: Callable[[list[int]], bool] | None,
    generator: torch.Generator | None,
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """One completion per prompt: (token ids, log-probs).

    Args:
        language: transformers' Qwen2.5-VL language model.
        logits: hidden states [B, D] to logits [B, V].
        stop_ids: ids that end a completion and stay its last token.
        stops: whether the ids sampled so far hold a stop string, if there are any.
    """
    batch, width = prefill.embeddings.shape[:2]
    steps = sampling.max_new_tokens
    cache = Cache.empty(language, batch, width + steps, prefill.embeddings)
    layers = FusedLayers.of(language) or _Modules(language)
    hidden = _run_prompts(language, layers, prefill, cache)
    next_position = _last(prefill.positions.amax(0), prefill.lengths) + 1  # [B]
    text_positions = next_position[:, None] + torch.arange(steps, device=next_position.device)
    cos, sin = layers.turns(*angles(language, text_positions.expand(3, -1, -1), prefill.embeddings))
    slots = torch.arange(width + steps, device=next_position.device)
    padding = (slots >= prefill.lengths[:, None]) & (slots < width)
    mask = torch.zeros(padding.shape, dtype=hidden.dtype, device=hidden.device)
    mask = mask.masked_fill_(padding, -torch.inf)[:, None, None]

    decoder = _Decoder(layers, cache, cos, sin, mask)
    return sample_completions(hidden, decoder, logits, sampling, stop_ids, stops, generator)


@dataclass(slots=True)
class _Decoder:
    """The rows that are still being written; `cos` and `sin` [steps, B, ...], `mask` [B, 1, 1, slots]."""

    layers: FusedLayers | _Modules
    cache: Cache
    cos: Tensor
    sin: Tensor
    mask: Tensor

    def advance(self, ids: Tensor, step: int) -> Tensor:
        mask = self.mask[..., : self.cache.used + 1]
        return self.layers.advance(ids, self.cos[step], self.sin[step], self.cache, mask)

    def keep(self, rows: Tensor) -> None:
        self.cache.select(rows)
        self.cos, self.sin, self.mask = self.cos[:, rows], self.sin[:, rows], self.mask[rows]


class _Modules:
    """The same by the model's own modules, whatever they are made of."""

    def __init__(self, language: Any) -> None:
        self._language = language

    def run(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        return run_layers(self._language, x, cos, sin, attend)[0]

    def turns(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return cos.transpose(0, 1), sin.transpose(0, 1)

    def advance(self, ids: Tensor, cos: Tensor, sin: Tensor, cache: Cache, mask: Tensor) -> Tensor:
        def one(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = cache.append(i, k, v)
            b, heads, _, d = q.shape
            grouped = q.reshape(b, keys.shape[1], heads // keys.shape[1], d)
            return F.scaled_dot_product_attention(grouped, keys, values, mask).reshape(b, heads, 1, d)

        x = self._language.embed_tokens(ids[:, None])
        hidden, _ = run_layers(self._language, x, cos[:, None], sin[:, None], one)
        cache.used += 1
        return hidden[:, 0]


def _run_prompts(language: Any, layers: FusedLayers | _Modules, prefill: Prefill, cache: Cache) -> Tensor:
    """[B, D] hidden states of the prompts' last tokens; fills the cache."""
    x = prefill.embeddings
    cos, sin = angles(language, prefill.positions, x)
    shared, width = prefill.shared, x.shape[1]

    def first(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache.append(i, k, v)  # one row for the shared prefix, broadcast to all
        return attend(q, k, v, None)

    if not shared:
        hidden = layers.run(x, cos, sin, first)
    else:
        layers.run(x[:1, :shared], cos[:1, :shared], sin[:1, :shared], first)
        cache.used = shared
        columns = torch.arange(width, device=x.device)
        hidden_from = columns[None, :] > columns[shared:, None]
        mask = x.new_zeros(hidden_from.shape).masked_fill_(hidden_from, -torch.inf)[None, None]

        def rest(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend(q, *cache.append(i, k, v), mask)

        hidden = layers.run(x[:, shared:], cos[:, shared:], sin[:, shared:], rest)
    cache.used = width
    return _last(hidden, prefill.lengths - shared)


def _last(values: Tensor, lengths: Tensor) -> Tensor:
    """values[b, lengths[b] - 1] for every row."""
    return values[torch.arange(len(values), device=values.device), lengths - 1]
