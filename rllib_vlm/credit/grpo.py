"""GRPO: an episode is as good as it is better than its siblings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from rllib_vlm.credit.episode import check_fractions, rewards_to_go
from rllib_vlm.credit.group import GroupCounts, check_one_group, has_spread, spread_over_tokens
from rllib_vlm.errors import RLlibVLMError
from rllib_vlm.types import TokenCredit, Trajectory


@dataclass(slots=True, kw_only=True)
class GRPO:
    """Group-relative advantages, without a critic.

    Per episode (`discount=None`), with R_i the total reward of member i of a group of G::

        A_i = (R_i - mean(R)) / (std(R) + epsilon)         the same for every token of the episode

    `std` is the sample standard deviation (G - 1). `normalize_std=False` leaves the division out
    (Dr. GRPO): dividing makes groups that are nearly always solved, or never, weigh as much as the
    others. A group of one, and one whose members all earned the same, get zeros and are counted.

    Per turn (`discount=g`): turn n of member i has the reward-to-go
    G_{i,n} = sum_{m >= n} g^(m-n) r_{i,m}, whose baseline is the mean over the members that reached a
    turn n; where only one did, the mean over all turns of the group. The division is by the root mean
    square of these differences over the whole group, one number, because a turn that few members
    reached has no spread of its own worth the name. Turns then get credit only for what follows them.

    Source: DeepSeekMath (arXiv 2402.03300), equation of the outcome supervision; Dr. GRPO
    (arXiv 2503.20783). The per-turn variant is REINFORCE with reward-to-go and that baseline.
    """

    normalize_std: bool = True
    epsilon: float = 1e-6
    discount: float | None = None
    figures: GroupCounts = field(default_factory=GroupCounts, init=False, repr=False, compare=False)
    stage: ClassVar[Literal["group", "update", "learner"]] = "group"

    def __post_init__(self) -> None:
        if self.epsilon < 0:
            raise RLlibVLMError(f"grpo: epsilon is {self.epsilon}, it must be 0 or more (usual: 1e-6).")
        if self.discount is not None:
            check_fractions("grpo", discount=self.discount)

    def __call__(self, group: Sequence[Trajectory]) -> list[list[TokenCredit]]:
        check_one_group("grpo", group)
        if not group:
            return []
        totals = np.array([trajectory.total_reward for trajectory in group])
        self.figures.add(totals)
        advantages = self._per_episode(group, totals) if self.discount is None else self._per_turn(group)
        return [spread_over_tokens(t, a) for t, a in zip(group, advantages, strict=True)]

    def _per_episode(
        self, group: Sequence[Trajectory], totals: NDArray[np.float64]
    ) -> list[NDArray[np.float64]]:
        centred = np.zeros(len(totals))
        if has_spread(totals):
            centred = totals - totals.mean()
            if self.normalize_std:
                centred = centred / (totals.std(ddof=1) + self.epsilon)
        return [np.full(len(t.turns), c) for t, c in zip(group, centred, strict=True)]

    def _per_turn(self, group: Sequence[Trajectory]) -> list[NDArray[np.float64]]:
        assert self.discount is not None
        togo = [rewards_to_go(t.turn_rewards, self.discount) for t in group]
        pooled = np.concatenate(togo)
        if len(group) == 1 or not has_spread(pooled):
            return [np.zeros_like(g) for g in togo]
        reached = np.array([len(g) for g in togo])
        baseline = np.empty(reached.max())
        for n in range(len(baseline)):
            alive = [g[n] for g in togo if len(g) > n]
            baseline[n] = np.mean(alive) if len(alive) > 1 else pooled.mean()
        centred = [g - baseline[: len(g)] for g in togo]
        differences = np.concatenate(centred)
        if not has_spread(np.append(differences, 0.0)):
            return [np.zeros_like(g) for g in togo]
        if self.normalize_std:
            scale = float(np.sqrt(np.mean(differences**2))) + self.epsilon
            centred = [c / scale for c in centred]
        return centred
