"""Learner: rows become the packed minibatches of an update, one optimizer step each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from rllib_vlm.batching.packing import Batch, pack, pad
from rllib_vlm.batching.rows import Row
from rllib_vlm.core.columns import INDEX, VLMColumns
from rllib_vlm.core.update_plan import UpdatePlan, step_assignment
from rllib_vlm.credit.whitening import Moments
from rllib_vlm.errors import RLlibVLMError

AllGather = Callable[[Any], list[Any]]


@dataclass(frozen=True)
class Minibatches:
    """The optimizer steps of an update, laid out one at a time: images take memory only while they are used.

    Every learner has equally many steps; one may have no rows in a step of others.
    """

    rows: Sequence[Row]
    steps: Sequence[Sequence[int]]  # indices of this learner's rows, per optimizer step
    row_tokens: int
    packing: bool

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[Batch, int]]:
        """Each step's columns [B, ...] and the number of turns in it."""
        for members in self.steps:
            some = [self.rows[i] for i in members]
            columns = pack(some, max_tokens=self.row_tokens) if self.packing else pad(some)
            yield columns, sum(int(row.turn_ends.sum()) for row in some)


class MaskAndPack(ConnectorV2):
    """Drops what teaches nothing, whitens advantages over all learners, and cuts the update into steps.

    Args:
        row_tokens: longest packed row.
        packing: several rows in one, or one each, padded; families that gain nothing by packing have one each.
    """

    def __init__(
        self,
        input_observation_space: Any = None,
        input_action_space: Any = None,
        *,
        row_tokens: int,
        packing: bool = True,
    ) -> None:
        super().__init__(input_observation_space, input_action_space)
        self._row_tokens = row_tokens
        self._packing = packing

    @override(ConnectorV2)
    def __call__(
        self,
        *,
        rl_module: Any,
        batch: dict[str, Any],
        episodes: list[SingleAgentEpisode],
        shared_data: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        assert shared_data is not None
        plan: UpdatePlan = shared_data["plan"]
        gather: AllGather = shared_data["all_gather"]
        kept = [[row for row in own if _teaches(row, plan)] for own in batch[VLMColumns.ROWS]]
        if plan.normalize_advantages:
            kept = _whiten(kept, gather)
        if plan.downsample < 1.0 and plan.expects_credit:
            kept = _strongest(kept, plan.downsample, gather)
        steps = _steps(kept, batch[VLMColumns.EPISODE_INDEX], plan, gather)
        rows = [row for own in kept for row in own]
        packing = self._packing and rl_module[DEFAULT_MODULE_ID].unwrapped().family.packs
        return {DEFAULT_MODULE_ID: Minibatches(rows, steps, self._row_tokens, packing)}


def _teaches(row: Row, plan: UpdatePlan) -> bool:
    if plan.losses.active.keys() == {"grounding"}:
        return bool(row.grounding_mask.any())
    if plan.drop_uninformative and plan.expects_credit:
        return bool(row.value_mask.any() or row.advantages[row.loss_mask].any())
    return bool(row.loss_mask.any() or row.value_mask.any())


def _whiten(rows: list[list[Row]], gather: AllGather) -> list[list[Row]]:
    own = sum((Moments.of(row.advantages, row.loss_mask) for r in rows for row in r), Moments())
    total = sum(gather(own), Moments())
    return [[replace(row, advantages=total.whiten(row.advantages, row.loss_mask)) for row in r] for r in rows]


def _strongest(rows: list[list[Row]], share: float, gather: AllGather) -> list[list[Row]]:
    """This `share` of the rows of all learners, those with the largest advantage of either sign; rows that tie stay.

    After PODS (Xu et al., arXiv 2504.13818), which learns from the rollouts of the most different rewards alone.
    """
    own = [[_largest(row) for row in r] for r in rows]
    found = np.sort([size for part in gather([size for sizes in own for size in sizes]) for size in part])
    if not len(found):
        return rows
    least = found[
        -max(1, math.ceil(share * len(found) - 1e-9))
    ]  # 0.07 of 100 are 7, whatever floats make of it
    return [
        [row for row, size in zip(r, sizes, strict=True) if size >= least]
        for r, sizes in zip(rows, own, strict=True)
    ]


def _largest(row: Row) -> float:
    """Of its advantages; one that is no number comes first, so that the loss meets it and leaves the step out."""
    return float(np.nan_to_num(np.abs(row.advantages[row.loss_mask]), nan=np.inf).max(initial=0.0))


def _steps(
    rows: Sequence[Sequence[Row]], indices: Sequence[int], plan: UpdatePlan, gather: AllGather
) -> list[list[int]]:
    """This learner's rows of every step: the steps are drawn over the rows of all learners.

    Raises:
        RLlibVLMError: two episodes of several learners' update have the same index.
    """
    if len(set(indices)) < len(indices):
        indices = range(len(indices))  # nobody numbered them: right for a learner that is alone
    counts: dict[int, int] = {}
    for part in gather({index: len(own) for index, own in zip(indices, rows, strict=True)}):
        if counts.keys() & part.keys():
            raise RLlibVLMError(
                "episodes of different learners have the same index: number them over the whole update in "
                f"custom_data[{INDEX!r}] before they are sharded"
            )
        counts |= part
    starts, start = {}, 0
    for index in sorted(counts):
        starts[index] = start
        start += counts[index]
    # Where each of this learner's rows stands among the rows of all.
    places = [starts[index] + k for index, own in zip(indices, rows, strict=True) for k in range(len(own))]
    ordered = [counts[index] for index in sorted(counts)]
    steps: list[list[int]] = []
    for epoch in range(plan.num_epochs):
        assignment, number = step_assignment(
            ordered, epoch=epoch, minibatch_size=plan.minibatch_size, seed=plan.seed
        )
        drawn: list[list[int]] = [[] for _ in range(number)]
        for i, place in enumerate(places):
            drawn[int(assignment[place])].append(i)
        steps += drawn
    return steps
