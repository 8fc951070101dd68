"""Sampling a batch token by token, whatever computes the next hidden states; which prompts go into one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rllib_vlm.models.sampling import Seed, draw, sample
from rllib_vlm.types import SamplingParams

_PREFILL_TOKENS = 16384  # prompt tokens computed at once; bounds the memory of a large batch
_KEPT_PER_TOKEN = 4  # kept tokens weigh less: keys and values alone, not what it takes to compute them

Sampled = tuple[NDArray[np.int64], NDArray[np.float32]]  # token ids [T], log-probs [T] nats


class Decoder(Protocol):
    """A batch of prompts that has been read, and what was sampled so far."""

    def advance(self, ids: Tensor, step: int) -> Tensor:
        """[B, D] hidden states after the tokens `ids` [B], the `step`-th sampled of each row, from 0."""

    def keep(self, rows: Tensor) -> None:
        """Drops all but these rows of the batch."""


def sample_completions(
    hidden: Tensor,
    decoder: Decoder,
    logits: Callable[[Tensor], Tensor],
    sampling: SamplingParams,
    stop_ids: Sequence[int],
    stops: Callable[[list[int]], bool] | None,
    seeds: Sequence[Seed],
) -> list[Sampled]:
    """One completion per row: (token ids, log-probs).

    Args:
        hidden: [B, D] states of the prompts' last tokens.
        logits: hidden states [B, D] to logits [B, V].
        stop_ids: ids that end a completion and stay its last token.
        stops: whether the ids sampled so far hold a stop string, if there are any.
        seeds: of each row; see `sampling.draw`.
    """
    batch, steps = len(hidden), sampling.max_new_tokens
    ids: list[list[int]] = [[] for _ in range(batch)]
    logprobs: list[list[float]] = [[] for _ in range(batch)]
    alive = list(range(batch))  # completion of each row of the tensors
    ending = frozenset(stop_ids)
    done: set[int] = set()
    numbers = draw(seeds, steps, hidden.device)
    for step in range(steps):
        drawn, drawn_logprobs = sample(logits(hidden), sampling, numbers[:, step])
        for row, token, logprob in zip(alive, drawn.tolist(), drawn_logprobs.tolist(), strict=True):
            if row in done:
                continue
            ids[row].append(token)
            logprobs[row].append(logprob)
            if token in ending or (stops is not None and stops(ids[row])):
                done.add(row)
        if len(done) == batch or step == steps - 1:
            break
        if sum(row in done for row in alive) * 2 >= len(alive):
            kept = torch.tensor([i for i, row in enumerate(alive) if row not in done], device=hidden.device)
            alive = [row for row in alive if row not in done]
            decoder.keep(kept)
            drawn, numbers = drawn[kept], numbers[kept]
        hidden = decoder.advance(drawn, step)
    return [
        (np.asarray(i, dtype=np.int64), np.asarray(p, dtype=np.float32))
        for i, p in zip(ids, logprobs, strict=True)
    ]


def seeds_of(sampling: SamplingParams, seeds: Sequence[int | None] | None, count: int) -> Sequence[Seed]:
    """The seed of each of `count` prompts: its own, or one that follows from `sampling.seed` and its place."""
    if seeds is not None:
        return seeds
    return [None if sampling.seed is None else (sampling.seed, i) for i in range(count)]


def batches_by_length(lengths: Sequence[int], kept: Sequence[int] | None = None) -> list[list[int]]:
    """Prompts, those with least to compute first, cut where padding would cost more than a batch of its own.

    Args:
        lengths: tokens of each prompt.
        kept: those of them that need not be computed.
    """
    kept = kept or [0] * len(lengths)
    new = [length - k for length, k in zip(lengths, kept, strict=True)]
    batches: list[list[int]] = []
    past = 0  # the longest of the batch
    for i in sorted(range(len(new)), key=lambda i: new[i]):
        batch = batches[-1] if batches else []
        past = max(past, kept[i])
        # A batch's first is its shortest. Beyond half as long again, padding outweighs batching.
        if (
            not batch
            or new[i] > 1.5 * new[batch[0]] + 16
            or (len(batch) + 1) * (new[i] + past / _KEPT_PER_TOKEN) > _PREFILL_TOKENS
        ):
            batches.append([i])
            past = kept[i]
        else:
            batch.append(i)
    return batches
