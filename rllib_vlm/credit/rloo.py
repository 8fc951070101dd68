"""RLOO: the baseline of an episode is the mean of its siblings, itself left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from rllib_vlm.credit.group import GroupCounts, check_one_group, has_spread, spread_over_tokens
from rllib_vlm.types import TokenCredit, Trajectory


@dataclass(slots=True, kw_only=True)
class RLOO:
    """REINFORCE leave-one-out.

    With R_i the total reward of member i of a group of G::

        A_i = R_i - 1/(G-1) sum_{j != i} R_j  =  G/(G-1) (R_i - mean(R))

    the same for every token of the episode. The baseline does not depend on the episode's own
    actions, so that the gradient is unbiased. A group of one gets zeros and is counted.

    Source: Kool et al., "Buy 4 REINFORCE Samples, Get a Baseline for Free!" (2019); Ahmadian et al.,
    "Back to Basics" (arXiv 2402.14740).
    """

    figures: GroupCounts = field(default_factory=GroupCounts, init=False, repr=False, compare=False)
    stage: ClassVar[Literal["group", "update", "learner"]] = "group"

    def __call__(self, group: Sequence[Trajectory]) -> list[list[TokenCredit]]:
        check_one_group("rloo", group)
        if not group:
            return []
        totals = np.array([trajectory.total_reward for trajectory in group])
        self.figures.add(totals)
        advantages = np.zeros(len(totals))
        if has_spread(totals):
            advantages = (totals - totals.mean()) * len(totals) / (len(totals) - 1)
        return [
            spread_over_tokens(t, np.full(len(t.turns), a)) for t, a in zip(group, advantages, strict=True)
        ]
