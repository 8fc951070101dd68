"""GiGPO: siblings compare whole episodes, and turns that began in the same state."""

from __future__ import annotations

from collections import defaultdict
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
class GiGPO:
    """Group-in-group advantages: one of the episode, and one of the turn, without a critic.

    With R_i the total reward of member i and G_{i,n} = sum_{m >= n} discount^(m-n) r_{i,m}::

        A^E_i     = (R_i - mean(R)) / F(R)
        A^S_{i,n} = (G_{i,n} - mean(S)) / F(S)        S: the G of all turns of the group with the same anchor
        A_{i,n}   = A^E_i + step_weight * A^S_{i,n}

    F is the sample standard deviation plus `epsilon`, or 1 with `normalize_std=False`. The anchor of a turn stands
    for the state it began in (`Turn.anchor`): what the simulator says in `info["anchor"]`, else a digest of the
    observation. A state that one turn alone began in gives that turn A^S = 0.

    Source: Feng et al., "Group-in-Group Policy Optimization for LLM Agent Training" (arXiv 2505.10978),
    equations 3 to 8.
    """

    discount: float = 0.95
    step_weight: float = 1.0
    normalize_std: bool = True
    epsilon: float = 1e-6
    figures: GroupCounts = field(default_factory=GroupCounts, init=False, repr=False, compare=False)
    stage: ClassVar[Literal["group", "update", "learner"]] = "group"

    def __post_init__(self) -> None:
        check_fractions("gigpo", discount=self.discount)
        for name in ("step_weight", "epsilon"):
            if getattr(self, name) < 0:
                raise RLlibVLMError(f"gigpo: {name} is {getattr(self, name)}, it must be 0 or more.")

    def __call__(self, group: Sequence[Trajectory]) -> list[list[TokenCredit]]:
        check_one_group("gigpo", group)
        if not group:
            return []
        totals = np.array([trajectory.total_reward for trajectory in group])
        self.figures.add(totals)
        episodes = self._relative(totals)
        togo = [rewards_to_go(t.turn_rewards, self.discount) for t in group]
        steps = [np.zeros(len(g)) for g in togo]
        for members in self._by_anchor(group).values():
            relative = self._relative(np.array([togo[i][n] for i, n in members]))
            for (i, n), value in zip(members, relative, strict=True):
                steps[i][n] = value
        return [
            spread_over_tokens(t, episode + self.step_weight * step)
            for t, episode, step in zip(group, episodes, steps, strict=True)
        ]

    @staticmethod
    def _by_anchor(group: Sequence[Trajectory]) -> dict[str, list[tuple[int, int]]]:
        """(member, turn) of the turns that began in each state."""
        found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for i, trajectory in enumerate(group):
            for n, turn in enumerate(trajectory.turns):
                if turn.anchor:
                    found[turn.anchor].append((i, n))
        return found

    def _relative(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        if not has_spread(values):
            return np.zeros(len(values))
        centred = values - values.mean()
        return centred / (values.std(ddof=1) + self.epsilon) if self.normalize_std else centred
