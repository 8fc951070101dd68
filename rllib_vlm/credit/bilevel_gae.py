"""Bi-level GAE: between turns first, then between the tokens of each turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from rllib_vlm.credit.episode import EpisodeTokens, check_fractions, generalized_advantages
from rllib_vlm.types import TokenCredit, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class BiLevelGAE:
    """GAE over turns whose returns become the rewards of a GAE inside each turn.

    1. Between turns: V^turn_n is the value at turn n's *last* token, and with `high_level_gamma` and
       `high_level_lam` a GAE over turns gives A^turn_n and the turn's return G_n = A^turn_n + V^turn_n.
    2. Inside turn n: G_n is the reward of its last token, nothing follows it, and a GAE over the
       turn's tokens with `gamma` and `lam` gives the advantages.

    Rewards of single tokens (a KL penalty) count in their turn's reward at the first level, and at their own token
    at the second, in place of the last.

    So a turn's credit for the future does not fade with the number of tokens in later answers.
    Turns come from the trajectory itself: a turn whose reward is exactly 0 is a turn like any other.
    `high_level_lam=None` uses `lam` at both levels, as the paper does.

    Source: VAGEN (arXiv 2510.16907), section "Bi-Level GAE". The whitening that follows there is
    `credit.whitening`.
    """

    gamma: float = 1.0
    lam: float = 0.95
    high_level_gamma: float = 0.95
    high_level_lam: float | None = None
    stage: ClassVar[Literal["group", "update", "learner"]] = "learner"

    def __post_init__(self) -> None:
        check_fractions("bilevel_gae", gamma=self.gamma, lam=self.lam, high_level_gamma=self.high_level_gamma)
        if self.high_level_lam is not None:
            check_fractions("bilevel_gae", high_level_lam=self.high_level_lam)

    def __call__(self, group: Sequence[Trajectory]) -> list[list[TokenCredit]]:
        return [self._episode(trajectory) for trajectory in group]

    def _episode(self, trajectory: Trajectory) -> list[TokenCredit]:
        tokens = EpisodeTokens.of(trajectory)
        values, sums = tokens.values[tokens.last], tokens.turn_sums()
        lam = self.lam if self.high_level_lam is None else self.high_level_lam
        turn_returns = values + generalized_advantages(
            tokens.rewards + sums, values, tokens.bootstrap, gamma=self.high_level_gamma, lam=lam
        )
        advantages = np.zeros(len(tokens.values))
        for first, last, turn_return in zip(tokens.first, tokens.last, turn_returns - sums, strict=True):
            inside = slice(first, last + 1)
            rewards = tokens.token_rewards[inside].copy()  # counted here, so no longer in the turn's return
            rewards[-1] += turn_return
            advantages[inside] = generalized_advantages(
                rewards, tokens.values[inside], 0.0, gamma=self.gamma, lam=self.lam
            )
        return tokens.split(advantages, advantages + tokens.values)
