"""Sampling a batch of completions with a key-value cache.

Three things make it quick for many short answers to long prompts: the beginning that all prompts share (system message,
format, list of actions) is computed once; prompts stand left-aligned, so that causality alone hides their padding; and
a decoding step is a handful of tensor operations (`fused`) on a cache allocated once, from which finished rows are
dropped.

A conversation's past may come with it: its tokens are there already, and those to compute come behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rllib_vlm.models.decoding import sample_completions
from rllib_vlm.models.precision import Precision, products
from rllib_vlm.models.qwen2_5_vl.cache import Cache, cache_of
from rllib_vlm.models.qwen2_5_vl.decoder import Attend, angles, run_layers
from rllib_vlm.models.qwen2_5_vl.fused import FusedLayers
from rllib_vlm.models.qwen2_5_vl.prefill import Prefill
from rllib_vlm.models.sampling import Seed
from rllib_vlm.models.sessions import Keep, Past
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
        hidden, decoder = _read(language, prefill, sampling.max_new_tokens, lasting=keep is not None)
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
    one: Tensor  # int64 [B] of 1: the tokens that a step adds
    prompts: Sequence[int]  # tokens of each row that was ever there
    alive: list[int]  # those rows that are still there
    remembers: bool  # keys and values of rows that are not
    _left: dict[int, Past] = field(default_factory=dict)

    def advance(self, ids: Tensor, step: int) -> Tensor:
        """[B, D] hidden states after the tokens `ids` [B], the `step`-th sampled of each row, from 0."""
        self.cache.expect(self.one, 1)
        hidden = self.layers.advance(ids, self.cos[step], self.sin[step], self.cache)
        self.cache.done()
        return hidden

    def keep(self, rows: Tensor) -> None:
        """Drops all but these rows of the batch."""
        staying = rows.tolist()
        if self.remembers:
            for at in set(range(len(self.alive))).difference(staying):
                self._left[self.alive[at]] = self.cache.memory(at)
        self.alive = [self.alive[at] for at in staying]
        self.cache.select(staying)
        self.cos, self.sin, self.one = self.cos[:, rows], self.sin[:, rows], self.one[rows]

    def memory(self, row: int, sampled: int) -> Past:
        """A row's prompt and as many of its `sampled` tokens as were read again."""
        past = self._left[row] if row in self._left else self.cache.memory(self.alive.index(row))
        return Past(past.pairs, min(past.tokens, self.prompts[row] + sampled))


class _Modules:
    """The same by the model's own modules, whatever they are made of."""

    def __init__(self, language: Any) -> None:
        self._language = language

    def run(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, read: Tensor) -> Tensor:
        hidden, _ = run_layers(self._language, x, cos, sin, attend)
        return hidden[torch.arange(len(x), device=x.device), read]

    def turns(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return cos.transpose(0, 1), sin.transpose(0, 1)

    def advance(self, ids: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        x = self._language.embed_tokens(ids[:, None])
        hidden, _ = run_layers(self._language, x, cos[:, None], sin[:, None], cache.attend)
        return hidden[:, 0]


def _read(language: Any, prefill: Prefill, steps: int, *, lasting: bool) -> tuple[Tensor, _Decoder]:
    """[B, D] hidden states of the prompts' last tokens, and what writes up to `steps` tokens behind them.

    Args:
        lasting: keys and values are for longer than the batch.
    """
    x, lengths = prefill.embeddings, prefill.lengths
    new = lengths.tolist()
    layers = FusedLayers.of(language) or _Modules(language)
    cache = cache_of(language, prefill.pasts, [n + steps for n in new], x, lasting=lasting)
    hidden = _run_prompts(language, layers, prefill, cache)

    next_position = _last(prefill.positions.amax(0), lengths) + 1  # [B]
    text_positions = next_position[:, None] + torch.arange(steps, device=x.device)
    cos, sin = layers.turns(*angles(language, text_positions.expand(3, -1, -1), x))
    prompts = [n if past is None else past.tokens + n for past, n in zip(prefill.pasts, new, strict=True)]
    return hidden, _Decoder(
        layers, cache, cos, sin, torch.ones_like(lengths), prompts, list(range(len(new))), lasting
    )


def _run_prompts(language: Any, layers: FusedLayers | _Modules, prefill: Prefill, cache: Cache) -> Tensor:
    """[B, D] hidden states of the prompts' last tokens; fills the cache."""
    x, shared = prefill.embeddings, prefill.shared
    cos, sin = angles(language, prefill.positions, x)
    if shared:
        count = torch.tensor([shared], device=x.device)
        cache.expect(count, shared)
        layers.run(x[:1, :shared], cos[:1, :shared], sin[:1, :shared], cache.attend, count - 1)
        cache.done()
    rest = prefill.lengths - shared
    cache.expect(rest, x.shape[1] - shared)
    hidden = layers.run(x[:, shared:], cos[:, shared:], sin[:, shared:], cache.attend, rest - 1)
    cache.done()
    return hidden


def _last(values: Tensor, lengths: Tensor) -> Tensor:
    """values[b, lengths[b] - 1] for every row."""
    return values[torch.arange(len(values), device=values.device), lengths - 1]
