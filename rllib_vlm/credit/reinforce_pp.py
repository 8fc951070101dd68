"""REINFORCE++: rewards to go, compared with the whole update in place of siblings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from rllib_vlm.credit.episode import check_fractions, rewards_to_go
from rllib_vlm.credit.group import GroupCounts, check_one_group, spread_over_tokens
from rllib_vlm.types import TokenCredit, Trajectory


@dataclass(slots=True, kw_only=True)
class ReinforcePlusPlus:
    """REINFORCE with advantages that are whitened over the update, without a critic.

    Turn n of member i has::

        A_{i,n} = G_{i,n} - b        G_{i,n} = sum_{m >= n} discount^(m-n) r_{i,m}

    with b = 0, so that groups of one will do, or, with `baseline=True`, the mean total reward of the group.
    What makes it REINFORCE++ is `training.normalize_advantages: true`, which then whitens A over all tokens of the
    update and all learners; without it this is REINFORCE. The paper's KL is in the reward (`kl_in: reward`, here
    summed over a turn), and in the loss in its baseline form.

    Source: Hu, Liu, Xu, Shen, "REINFORCE++" (arXiv 2501.03262), equations 5 to 9.
    """

    discount: float = 1.0
    baseline: bool = False
    figures: GroupCounts = field(default_factory=GroupCounts, init=False, repr=False, compare=False)
    stage: ClassVar[Literal["group", "update", "learner"]] = "group"

    def __post_init__(self) -> None:
        check_fractions("reinforce_pp", discount=self.discount)

    def __call__(self, group: Sequence[Trajectory]) -> list[list[TokenCredit]]:
        check_one_group("reinforce_pp", group)
        if not group:
            return []
        totals = np.array([trajectory.total_reward for trajectory in group])
        if self.baseline:
            self.figures.add(totals)
        mean = totals.mean() if self.baseline else 0.0
        return [spread_over_tokens(t, rewards_to_go(t.turn_rewards, self.discount) - mean) for t in group]
