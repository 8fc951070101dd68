"""What the group-relative estimators share: the check, the count and the spreading over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rllib_vlm.errors import RLlibVLMError
from rllib_vlm.types import TokenCredit, Trajectory


@dataclass(slots=True, kw_only=True)
class GroupCounts:
    """How many groups an estimator saw, and how many of them taught nothing."""

    groups: int = 0
    groups_of_one: int = 0  # no sibling to compare with: zero advantage
    groups_without_spread: int = 0  # every member earned the same: zero advantage

    def pop(self) -> dict[str, int]:
        """The counts since the last call, for the metrics; they start again at 0."""
        counts = {
            "num_groups": self.groups,
            "num_groups_of_one": self.groups_of_one,
            "num_groups_without_spread": self.groups_without_spread,
        }
        self.groups = self.groups_of_one = self.groups_without_spread = 0
        return counts

    def add(self, returns: NDArray[np.float64]) -> None:
        """Counts one group by its members' returns."""
        self.groups += 1
        if len(returns) == 1:
            self.groups_of_one += 1
        elif not has_spread(returns):
            self.groups_without_spread += 1


def has_spread(returns: NDArray[np.float64]) -> bool:
    """Whether the returns differ by more than rounding.

    Equal returns whose sums were rounded differently must not be blown up by a division by their spread.
    """
    if len(returns) < 2:
        return False
    return bool(np.ptp(returns) > 1e-9 * max(1.0, float(np.abs(returns).max())))


def check_one_group(estimator: str, group: Sequence[Trajectory]) -> None:
    """Siblings only.

    Raises:
        RLlibVLMError: the trajectories come from different groups.
    """
    keys = sorted({trajectory.group for trajectory in group})
    if len(keys) > 1:
        raise RLlibVLMError(
            f"{estimator}: expected the trajectories of one group, got {len(keys)} groups "
            f"({', '.join(map(repr, keys[:3]))}{', ...' if len(keys) > 3 else ''}). Call it once per group."
        )


def spread_over_tokens(trajectory: Trajectory, per_turn: NDArray[np.float64]) -> list[TokenCredit]:
    """One advantage per turn, given to each of its tokens; there is no critic to teach."""
    credit = []
    for turn, advantage in zip(trajectory.turns, per_turn, strict=True):
        n = len(turn.completion.token_ids)
        credit.append(
            TokenCredit(
                advantages=np.full(n, advantage, np.float32),
                returns=np.zeros(n, np.float32),
                value_mask=np.zeros(n, bool),
            )
        )
    return credit
