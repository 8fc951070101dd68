"""Useful tokens a second of a learner that packs rows, against one that pads them.

`python -m benchmarks packing [episodes=128] [turns=20] [rounds=5]`: FrozenLake in text with the whole conversation in
the prompt, up to `turns` turns, played by a model that imitated for a moment, so that episodes end when they end and
rows are of many lengths. Forward and backward of the same rows by the same layers, the laying out included, in
micro-batches of as many positions; the ways take turns. A padded batch is what it is elsewhere: every row as long as
the longest, padding computed like any token, and what rows begin with in each of them; packed, a beginning that
segments of a micro-batch have in common is computed once. Under `details` also against padding that is spared by
sorting, against packing that computes every beginning, and how many positions padding adds: what there is to gain is a
matter of the episodes. About four minutes on one thread.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks._arguments import numbers
from benchmarks._taught import teach
from rllib_vlm.algorithms.ppo import VLMPPOConfig
from rllib_vlm.batching.micro import micro_batches
from rllib_vlm.batching.packing import Batch, pack, pad, to_torch
from rllib_vlm.batching.rows import Row, rows_from_trajectory
from rllib_vlm.connectors.trajectories import to_trajectory
from rllib_vlm.core.columns import VLMColumns

_POSITIONS = 2048  # of a packed row, and of a micro-batch
_DEFAULTS = {"episodes": 128, "turns": 20, "rounds": 5}


def run(*arguments: str) -> dict[str, Any]:
    """Headline: useful tokens a second, packed, over those of rows padded to the longest of the batch."""
    size = numbers("packing", arguments, _DEFAULTS)
    torch.set_num_threads(1)
    module, rows = _rollouts(size["episodes"], size["turns"])
    ways: dict[str, Callable[[Sequence[Row]], Iterator[Batch]]] = {
        "packed": _packed,
        "packed, every beginning computed": _packed,
        "padded": _padded,
        "padded by micro-batch": _padded_by_piece,
        "sorted, padded by micro-batch": lambda some: _padded_by_piece(sorted(some, key=len)),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    losses, positions = {}, {}
    for i in range(size["rounds"] + 1):
        for way, lay_out in ways.items():
            begin = time.process_time()
            with contextlib.nullcontext() if way == "packed" else _every_beginning(module):
                taken, losses[way], positions[way] = _learn(module, lay_out(rows))
            if i:  # the first round warms up
                seconds[way].append(taken)
                cpu[way].append(time.process_time() - begin)
    lengths = [len(row) for row in rows]
    useful = sum(lengths)
    speed = {way: useful / median(taken) for way, taken in seconds.items()}
    others = [way for way in ways if way != "packed"]
    return {
        "name": "packing",
        "value": round(speed["packed"] / speed["padded"], 3),
        "unit": "times the useful tokens a second of padded rows",
        "details": {
            **{f"over {way}": round(speed["packed"] / speed[way], 3) for way in others},
            "positions, padded over packed": round(positions["padded"] / positions["packed"], 3),
            **{
                f"over {way}, processor time": round(median(cpu[way]) / median(cpu["packed"]), 3)
                for way in others
            },
            **{f"useful tokens a second, {way}": round(speed[way], 1) for way in ways},
            **{f"share of padding, {way}": round(1 - useful / positions[way], 3) for way in ways},
            "largest relative difference of the loss": max(
                abs(losses[way] / losses["packed"] - 1.0) for way in others
            ),
            "rows": len(rows),
            "tokens of a row, least, median, most": f"{min(lengths)}, {median(lengths):g}, {max(lengths)}",
            **size,
        },
    }


def _rollouts(episodes: int, turns: int) -> tuple[Any, list[Row]]:
    """A module, and the rows of what it played."""
    config = VLMPPOConfig().environment("frozen_lake", env_config={"observation": "text", "max_steps": 50})
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=32, torch_threads=1)
    config.learners(torch_threads=1).rl_module(model_config={"size": "tiny"})
    config.prompting(parser="no_think", template="short", history="full", observation="text")
    config.generation(max_new_tokens=12).simulation(max_turns=turns)
    runner, learner = teach(config)
    played = runner.sample(num_episodes=episodes)
    runner.stop()
    rows = [row for e in played for row in rows_from_trajectory(to_trajectory(e), max_row_tokens=_POSITIONS)]
    order = np.random.default_rng(0).permutation(len(rows))
    return learner.module["default_policy"], [rows[i] for i in order]


def _learn(module: Any, pieces: Iterator[Batch]) -> tuple[float, float, int]:
    """(seconds, loss, positions) of one pass over micro-batches."""
    module.zero_grad(set_to_none=True)
    start, total, positions = time.perf_counter(), 0.0, 0
    for piece in pieces:
        tensors = to_torch(piece)
        logprobs = module.forward_train(tensors, with_values=False)[VLMColumns.LOGPROBS]
        loss = -(logprobs * tensors["loss_mask"]).sum()
        loss.backward()
        total += float(loss.detach())
        positions += piece["token_ids"].size
    return time.perf_counter() - start, total, positions


@contextlib.contextmanager
def _every_beginning(module: Any) -> Iterator[None]:
    """No two tokens are taken to be alike."""
    family = module.unwrapped().family
    family._contents = lambda rows, *_: torch.arange(rows.token_ids.numel()).view_as(rows.token_ids)  # noqa: SLF001
    try:
        yield
    finally:
        del family._contents  # noqa: SLF001


def _packed(rows: Sequence[Row]) -> Iterator[Batch]:
    return micro_batches(pack(rows, max_tokens=_POSITIONS), max_tokens=_POSITIONS)


def _padded(rows: Sequence[Row]) -> Iterator[Batch]:
    """All rows as long as the longest, some at a time."""
    batch = _computed(pad(rows))
    some = max(1, _POSITIONS // batch["token_ids"].shape[1])
    for start in range(0, len(rows), some):
        yield {name: column[start : start + some] for name, column in batch.items()}


def _padded_by_piece(rows: Sequence[Row]) -> Iterator[Batch]:
    """Rows in their order, in each micro-batch as long as its longest."""
    piece: list[Row] = []
    for row in rows:
        if piece and (len(piece) + 1) * max(map(len, [*piece, row])) > _POSITIONS:
            yield _computed(pad(piece))
            piece = []
        piece.append(row)
    if piece:
        yield _computed(pad(piece))


def _computed(batch: Batch) -> Batch:
    """The model leaves padding out; here it is part of its row, behind all that it could change."""
    batch["segment_ids"][:] = 1
    return batch
