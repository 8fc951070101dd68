"""The limit for a rollout: a hand-written loop over one batch of conversations, with nothing around it.

What an expert would write for exactly this task, text only and all conversations in step: one cache of keys and
values for all turns, of which each turn computes what is new, on the same fused layers as the backend `hf`. No Ray, no
slots, no history policy, no connectors, no episodes; nothing fails, and nobody is waited for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rllib_vlm.models.qwen2_5_vl import Qwen25VL
from rllib_vlm.models.qwen2_5_vl.cache import cache_of
from rllib_vlm.models.qwen2_5_vl.decoder import angles
from rllib_vlm.models.qwen2_5_vl.fused import FusedLayers
from rllib_vlm.models.sampling import sample
from rllib_vlm.prompts import build_parser
from rllib_vlm.sims.frozen_lake import FrozenLake
from rllib_vlm.types import Message, SamplingParams


class _Batch:
    """Conversations that are read and answered together."""

    def __init__(self, family: Qwen25VL, rows: int, size: int, sampling: SamplingParams) -> None:
        self._family = family
        self._language = family.model.model.language_model
        fused = FusedLayers.of(self._language)
        assert fused is not None, "the model is too large for this loop"
        self._layers = fused
        self._sampling = sampling
        self._like = torch.zeros(1)
        self._cache = cache_of(self._language, [None] * rows, [size] * rows, self._like)
        self._lengths = torch.zeros(rows, dtype=torch.int64)  # tokens of each conversation so far
        self._last: list[list[int]] = [[] for _ in range(rows)]  # sampled, and not read yet

    def answer(self, new: Sequence[NDArray[np.int64]]) -> list[tuple[list[int], list[float]]]:
        """Reads what is new in each conversation and samples its answers: ids and log-probs."""
        hidden = self._read([[*last, *ids.tolist()] for last, ids in zip(self._last, new, strict=True)])
        rows, steps = len(new), self._sampling.max_new_tokens
        cos, sin = self._angles(self._lengths[:, None] + torch.arange(steps))
        cos, sin = self._layers.turns(cos, sin)
        numbers = torch.rand(steps, rows, dtype=torch.float64)
        ids: list[list[int]] = [[] for _ in range(rows)]
        logprobs: list[list[float]] = [[] for _ in range(rows)]
        going = set(range(rows))
        for step in range(steps):
            drawn, drawn_logprobs = sample(self._family.logits(hidden), self._sampling, numbers[step])
            for row, (token, logprob) in enumerate(zip(drawn.tolist(), drawn_logprobs.tolist(), strict=True)):
                if row in going:
                    ids[row].append(token)
                    logprobs[row].append(logprob)
                    if token in self._family.stop_token_ids:
                        going.discard(row)
            if not going or step == steps - 1:
                break
            one = torch.zeros(rows, dtype=torch.int64)
            one[list(going)] = 1
            self._lengths += one
            self._cache.expect(one, 1)
            hidden = self._layers.advance(drawn, cos[step], sin[step], self._cache)
            self._cache.done()
        self._last = [row[-1:] for row in ids]
        return list(zip(ids, logprobs, strict=True))

    def _read(self, new: Sequence[Sequence[int]]) -> Tensor:
        """[B, D] states of the last of the new tokens."""
        counts = torch.tensor([len(ids) for ids in new])
        block = int(counts.max())
        padded = torch.zeros(len(new), block, dtype=torch.int64)
        for row, ids in enumerate(new):
            padded[row, : len(ids)] = torch.tensor(ids)
        cos, sin = self._angles(self._lengths[:, None] + torch.arange(block))
        self._cache.expect(counts, block)
        embedded = self._language.embed_tokens(padded)
        hidden = self._layers.run(embedded, cos, sin, self._cache.attend, counts - 1)
        self._cache.done()
        self._lengths += counts
        return hidden

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return angles(self._language, positions.expand(3, -1, -1), self._like)


@torch.no_grad()
def play(
    family: Qwen25VL,
    lakes: Sequence[FrozenLake],
    seeds: Sequence[int],
    *,
    system: str,
    parser: str,
    turns: int,
    sampling: SamplingParams,
) -> int:
    """Plays an episode of up to `turns` turns in each lake, all in step; how many turns that were.

    Args:
        system: the system message, with `{instruction}` in it.
        parser: a name of the table `parsers`.
    """
    read = build_parser(parser)
    stop = np.array(family.stop_token_ids[:1])
    new = []
    for lake, seed in zip(lakes, seeds, strict=True):
        observation, info = lake.reset(seed=seed)
        first = Message(role="system", text=system.format(instruction=info["instruction"]))
        new.append(family.encode([first, Message(role="user", text=observation["text"])]).token_ids)
    longest = max(map(len, new)) + turns * (2 * sampling.max_new_tokens + 8 + lakes[0].size ** 2 * 4)
    batch = _Batch(family, len(lakes), longest, sampling)
    playing, played = [True] * len(lakes), 0
    for _ in range(turns):
        answers = batch.answer(new)
        for row, (lake, (ids, _)) in enumerate(zip(lakes, answers, strict=True)):
            if not playing[row]:
                continue
            parsed = read(family.decode(np.array(ids)), lake.actions, 1)
            observation, _, over, cut, _ = lake.turn(parsed.actions if parsed.valid else ())
            played += 1
            playing[row] = not (over or cut)
            ended = ids[-1] in family.stop_token_ids
            followup = family.encode_followup(observation["text"])
            new[row] = followup if ended else np.concatenate([stop, followup])
        if not any(playing):
            break
    return played
