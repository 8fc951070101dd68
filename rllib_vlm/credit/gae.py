"""Token-level GAE: every sampled token is a decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from rllib_vlm.credit.episode import EpisodeTokens, check_fractions, generalized_advantages
from rllib_vlm.types import TokenCredit, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenGAE:
    """GAE over all sampled tokens of the episode, as if its turns were one sequence.

    With tokens k = 0..S-1 of all turns in order, r_k the token's own reward (a KL penalty, else 0) and at the
    turn's last token the turn's, V_S the bootstrap value::

        delta_k = r_k + gamma V_{k+1} - V_k          A_k = sum_j (gamma lam)^j delta_{k+j}
        return_k = A_k + V_k

    `gamma` discounts per token, so that a long answer pays for its length; 1 is usual.

    Source: arXiv 1506.02438; over the tokens of a dialogue as in arXiv 2203.02155 (InstructGPT).
    """

    gamma: float = 1.0
    lam: float = 0.95
    stage: ClassVar[Literal["group", "update", "learner"]] = "learner"

    def __post_init__(self) -> None:
        check_fractions("gae", gamma=self.gamma, lam=self.lam)

    def __call__(self, group: Sequence[Trajectory]) -> list[list[TokenCredit]]:
        return [self._episode(trajectory) for trajectory in group]

    def _episode(self, trajectory: Trajectory) -> list[TokenCredit]:
        tokens = EpisodeTokens.of(trajectory)
        rewards = tokens.token_rewards.copy()
        rewards[tokens.last] += tokens.rewards
        advantages = generalized_advantages(
            rewards, tokens.values, tokens.bootstrap, gamma=self.gamma, lam=self.lam
        )
        return tokens.split(advantages, advantages + tokens.values)
