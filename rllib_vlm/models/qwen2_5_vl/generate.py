"""Sampling a batch of completions with a key-value cache.

Three things make it quick for many short answers to long prompts: the beginning that all prompts
share (system message, format, list of actions) is computed once; prompts stand left-aligned, so
prefill needs no padding mask; and a decoding step is a handful of tensor operations (`fused`) on a cache
allocated once, from which finished rows are dropped.

A conversation's past may come with it. Pasts end where the tokens to compute begin, in the same slot for
every row, whatever their lengths; p is past, n new, g generated, and dots are masked::

    row 0   p p p p p n n . g g g
    row 1   . . p p p n n n g g g
    row 2   . . . . . n n n g g g
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rllib_vlm.models.decoding import sample_completions
from rllib_vlm.models.precision import Precision, products
from rllib_vlm.models.qwen2_5_vl.cache import Cache
from rllib_vlm.models.qwen2_5_vl.decoder import Attend, angles, attend, run_layers
from rllib_vlm.models.qwen2_5_vl.fused import FusedLayers
from rllib_vlm.models.qwen2_5_vl.prefill import Prefill
from rllib_vlm.models.sampling import Seed
from rllib_vlm.models.sessions import Keep
from rllib_vlm.types import SamplingParams


@torch.no_grad()
def sample_batch(
    language: Any,
    prefill: Prefill,
    logits: Callable[[Tensor], Tensor],
    sampling: SamplingParams,
    stop_ids: Sequence[int],
    stops: Callable[[list[int]], bool] | None,
    seeds: Sequence[Seed],
    keep: Keep | None = None,
    precision: Precision = "float32",
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """One completion per prompt: (token ids, log-probs).

    Args:
        language: transformers' Qwen2.5-VL language model.
        logits: hidden states [B, D] to logits [B, V].
        stop_ids: ids that end a completion and stay its last token.
        stops: whether the ids sampled so far hold a stop string, if there are any.
        seeds: of each prompt; see `sampling.draw`.
        keep: told at the end of what was computed, row by row.
        precision: of the matrix products that read the prompts.
    """
    with products(prefill.embeddings.device, precision):
        hidden, decoder = _read(language, prefill, sampling.max_new_tokens)
    decoder.remembers = keep is not None
    completions = sample_completions(hidden, decoder, logits, sampling, stop_ids, stops, seeds)
    if keep is not None:
        for row, (sampled, _) in enumerate(completions):
            keep(row, sampled, decoder.memory(row, len(sampled)))
    return completions


@dataclass(slots=True)
class _Decoder:
    """The rows that are still being written."""

    layers: FusedLayers | _Modules
    cache: Cache
    cos: Tensor  # [steps, B, ...]
    sin: Tensor
    mask: Tensor  # [B, 1, 1, slots]
    prompts: list[slice]  # slots of each row that was ever there
    width: int  # slots of all prompts; what is sampled stands behind
    alive: list[int]  # those rows that are still there
    remembers: bool = False  # keys and values of rows that are not
    _left: dict[int, Tensor] = field(default_factory=dict)

    def advance(self, ids: Tensor, step: int) -> Tensor:
        """[B, D] hidden states after the tokens `ids` [B], the `step`-th sampled of each row, from 0."""
        mask = self.mask[..., : self.cache.used + 1]
        return self.layers.advance(ids, self.cos[step], self.sin[step], self.cache, mask)

    def keep(self, rows: Tensor) -> None:
        """Drops all but these rows of the batch."""
        staying = set(rows.tolist())
        if self.remembers:
            for at, row in enumerate(self.alive):
                if at not in staying:
                    self._left[row] = self._pairs(at, self.cache.used)
        self.alive = [row for at, row in enumerate(self.alive) if at in staying]
        self.cache.select(rows)
        self.cos, self.sin, self.mask = self.cos[:, rows], self.sin[:, rows], self.mask[rows]

    def memory(self, row: int, sampled: int) -> Tensor:
        """[layers, 2 G, S, d] of a row's prompt and of as many of its `sampled` tokens as were read again."""
        if row in self._left:
            prompt = self.prompts[row]
            return self._left[row][:, :, : prompt.stop - prompt.start + sampled].contiguous()
        return self._pairs(self.alive.index(row), min(self.cache.used, self.width + sampled))

    def _pairs(self, at: int, end: int) -> Tensor:
        pairs = self.cache.pairs[:, at]
        return torch.cat([pairs[:, :, self.prompts[self.alive[at]]], pairs[:, :, self.width : end]], 2)


class _Modules:
    """The same by the model's own modules, whatever they are made of."""

    def __init__(self, language: Any) -> None:
        self._language = language

    def run(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, read: Tensor) -> Tensor:
        hidden, _ = run_layers(self._language, x, cos, sin, attend)
        return hidden[torch.arange(len(x), device=x.device), read]

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


def _read(language: Any, prefill: Prefill, steps: int) -> tuple[Tensor, _Decoder]:
    """[B, D] hidden states of the prompts' last tokens, and what writes up to `steps` tokens behind them."""
    x, lengths = prefill.embeddings, prefill.lengths
    kept = [0 if past is None else past.shape[2] for past in prefill.pasts]
    past, (batch, new) = max(kept), x.shape[:2]
    width = past + new
    cache = Cache.empty(language, batch, width + steps, x)
    for row, pairs in enumerate(prefill.pasts):
        cache.pairs[:, row, :, : past - kept[row]] = 0.0
        if pairs is not None:
            cache.pairs[:, row, :, past - kept[row] : past] = pairs
    cache.used = past
    slots = torch.arange(width + steps, device=x.device)
    begins = past - torch.tensor(kept, device=x.device)[:, None]  # [B, 1]
    padding = (slots < begins) | (slots >= past + lengths[:, None]) & (slots < width)
    mask = _additive(padding, x)[:, None, None]
    layers = FusedLayers.of(language) or _Modules(language)
    hidden = _run_prompts(language, layers, prefill, cache, mask[..., :width])

    next_position = _last(prefill.positions.amax(0), lengths) + 1  # [B]
    text_positions = next_position[:, None] + torch.arange(steps, device=x.device)
    cos, sin = layers.turns(*angles(language, text_positions.expand(3, -1, -1), x))
    prompts = [slice(past - k, past + n) for k, n in zip(kept, lengths.tolist(), strict=True)]
    return hidden, _Decoder(layers, cache, cos, sin, mask, prompts, width, list(range(batch)))


def _run_prompts(
    language: Any, layers: FusedLayers | _Modules, prefill: Prefill, cache: Cache, seen: Tensor
) -> Tensor:
    """[B, D] hidden states of the prompts' last tokens; fills the cache.

    Args:
        seen: additive [B, 1, 1, slots of all prompts], the slots that hold tokens of a row.
    """
    x = prefill.embeddings
    cos, sin = angles(language, prefill.positions, x)
    shared, past, width = prefill.shared, cache.used, seen.shape[-1]

    def first(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache.append(i, k, v)  # one row for the shared prefix, broadcast to all
        last = q.shape[2] < k.shape[2]
        return attend(q, k, v, seen[: len(q), ..., : k.shape[2]] if last else None)

    if not (shared or past):
        hidden = layers.run(x, cos, sin, first, prefill.lengths - 1)
    else:
        if shared:
            end = torch.tensor([shared - 1], device=x.device)
            layers.run(x[:1, :shared], cos[:1, :shared], sin[:1, :shared], first, end)
            cache.used = shared
        slots = torch.arange(width, device=x.device)
        mask = _additive(slots > slots[cache.used :, None], x)[None, None]
        if past:
            mask = mask + seen

        def rest(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            last = q.shape[2] < k.shape[2]
            return attend(q, *cache.append(i, k, v), seen if last else mask)

        read = prefill.lengths - shared - 1
        hidden = layers.run(x[:, shared:], cos[:, shared:], sin[:, shared:], rest, read)
    cache.used = width
    return hidden


def _additive(hidden: Tensor, like: Tensor) -> Tensor:
    return like.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)


def _last(values: Tensor, lengths: Tensor) -> Tensor:
    """values[b, lengths[b] - 1] for every row."""
    return values[torch.arange(len(values), device=values.device), lengths - 1]
