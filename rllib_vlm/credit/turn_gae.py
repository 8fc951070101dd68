"""Turn-level GAE: every turn is one decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from rllib_vlm.credit.episode import EpisodeTokens, check_fractions, generalized_advantages
from rllib_vlm.types import TokenCredit, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnGAE:
    """GAE over turns; the tokens of a turn share its advantage.

    The value of a turn is the value at its first token, which is read from the last token of the
    prompt: what the critic thinks before the answer begins. With turns n = 0..M-1::

        delta_n = r_n + gamma V_{n+1} - V_n          A_n = sum_j (gamma lam)^j delta_{n+j}

    The critic learns at that token only (`value_mask`), towards A_n + V_n.

    Source: arXiv 1506.02438 with a turn as the step, as in RL4VLM (arXiv 2405.10292) and the
    turn-level PPO of VAGEN (arXiv 2510.16907).
    """

    gamma: float = 0.99
    lam: float = 0.95
    stage: ClassVar[Literal["group", "update", "learner"]] = "learner"

    def __post_init__(self) -> None:
        check_fractions("turn_gae", gamma=self.gamma, lam=self.lam)

    def __call__(self, group: Sequence[Trajectory]) -> list[list[TokenCredit]]:
        return [self._episode(trajectory) for trajectory in group]

    def _episode(self, trajectory: Trajectory) -> list[TokenCredit]:
        tokens = EpisodeTokens.of(trajectory)
        values = tokens.values[tokens.first]
        advantages = generalized_advantages(
            tokens.rewards + tokens.turn_sums(), values, tokens.bootstrap, gamma=self.gamma, lam=self.lam
        )
        returns = np.zeros(len(tokens.values))
        returns[tokens.first] = advantages + values
        value_mask = np.zeros(len(tokens.values), bool)
        value_mask[tokens.first] = True
        return tokens.split(np.repeat(advantages, tokens.last - tokens.first + 1), returns, value_mask)
