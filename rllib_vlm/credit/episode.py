"""An episode seen as one sequence of sampled tokens, and the recursion that every GAE here shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rllib_vlm.errors import RLlibVLMError
from rllib_vlm.types import TokenCredit, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeTokens:
    """The sampled tokens of an episode in order; prompts are not in it.

    S = sampled tokens of the episode, M = turns with at least one token, N = all turns. Two turns of
    3 and 2 tokens with rewards 0.5 and 1::

        lengths = (3, 2)    first = [0, 3]    last = [2, 4]    rewards = [0.5, 1]    values = [v0, ..., v4]
    """

    lengths: tuple[int, ...]  # [N] tokens of each turn
    first: NDArray[np.int64]  # [M] index of a turn's first token
    last: NDArray[np.int64]  # [M] index of a turn's last token
    rewards: NDArray[np.float64]  # [M] of the turns
    token_rewards: NDArray[np.float64]  # [S] of the tokens themselves, beside those
    values: NDArray[np.float64]  # [S] of the state before each token
    bootstrap: float  # value after the last turn; 0 where the episode terminated

    @classmethod
    def of(cls, trajectory: Trajectory) -> EpisodeTokens:
        """The view of `trajectory`, whose `values` a critic has filled.

        A turn without tokens (an aborted generation) decides nothing: its reward counts for the turn
        before it.

        Raises:
            RLlibVLMError: `values` are missing or of other lengths than the completions.
        """
        lengths = tuple(len(turn.completion.token_ids) for turn in trajectory.turns)
        found = tuple(len(v) for v in trajectory.values)
        if found != lengths:
            raise RLlibVLMError(
                f"Trajectory of group {trajectory.group!r}: this estimator needs a value per sampled token, "
                f"turns hold {lengths} tokens and {found or 'no'} values. Fill Trajectory.values from the "
                "critic first, or choose an estimator without a critic (grpo, rloo)."
            )
        rewards: list[float] = []
        for turn, length in zip(trajectory.turns, lengths, strict=True):
            if length:
                rewards.append(float(turn.reward))
            elif rewards:
                rewards[-1] += float(turn.reward)
        kept = np.array([n for n in lengths if n], np.int64)
        last = np.cumsum(kept) - 1
        return cls(
            lengths=lengths,
            first=last - kept + 1,
            last=last,
            rewards=np.array(rewards, np.float64),
            token_rewards=np.concatenate([np.zeros(0), *trajectory.token_rewards]).astype(np.float64)
            if trajectory.token_rewards
            else np.zeros(int(kept.sum())),
            values=np.concatenate([np.zeros(0), *trajectory.values]).astype(np.float64),
            bootstrap=0.0 if trajectory.terminated else float(trajectory.bootstrap_value),
        )

    def turn_sums(self) -> NDArray[np.float64]:
        """[M] each turn's `token_rewards` together."""
        return np.add.reduceat(self.token_rewards, self.first) if len(self.first) else np.zeros(0)

    def split(
        self,
        advantages: NDArray[np.float64],
        returns: NDArray[np.float64],
        value_mask: NDArray[np.bool_] | None = None,
    ) -> list[TokenCredit]:
        """Columns over the episode's tokens [S], cut back into the N turns."""
        if not self.lengths:
            return []
        ends = np.cumsum(self.lengths)[:-1]
        masks = [None] * len(self.lengths) if value_mask is None else np.split(value_mask, ends)
        columns = zip(
            np.split(advantages.astype(np.float32), ends),
            np.split(returns.astype(np.float32), ends),
            masks,
            strict=True,
        )
        return [TokenCredit(advantages=a, returns=r, value_mask=m) for a, r, m in columns]


def generalized_advantages(
    rewards: NDArray[np.float64],
    values: NDArray[np.float64],
    bootstrap: float,
    *,
    gamma: float,
    lam: float,
) -> NDArray[np.float64]:
    """[K] advantages of K decisions in order.

    delta_t = r_t + gamma V_{t+1} - V_t with V_K = bootstrap, and A_t = delta_t + gamma lam A_{t+1}.

    Source: Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage
    Estimation" (arXiv 1506.02438), equations 11, 12 and 16.
    """
    deltas = rewards + gamma * np.append(values[1:], bootstrap)[: len(values)] - values
    advantages = np.empty(len(deltas))
    running = 0.0
    decay = gamma * lam
    for t in range(len(deltas) - 1, -1, -1):
        running = deltas[t] + decay * running
        advantages[t] = running
    return advantages


def rewards_to_go(rewards: Sequence[float], discount: float) -> NDArray[np.float64]:
    """[N] sum_{m >= n} discount^(m-n) r_m of each of N turns."""
    togo = np.zeros(len(rewards))
    running = 0.0
    for n in range(len(rewards) - 1, -1, -1):
        running = rewards[n] + discount * running
        togo[n] = running
    return togo


def check_fractions(estimator: str, **fractions: float) -> None:
    """Discounts and traces lie in [0, 1].

    Raises:
        RLlibVLMError: naming the first that does not.
    """
    for name, value in fractions.items():
        if not 0.0 <= value <= 1.0:
            nearest = min(max(value, 0.0), 1.0)
            raise RLlibVLMError(f"{estimator}: {name} is {value}, it must be in [0, 1] (nearest: {nearest}).")
