"""GAE over turns with a baseline that is fitted anew to each update's own returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from rllib_vlm.credit.episode import check_fractions, generalized_advantages, rewards_to_go
from rllib_vlm.credit.group import spread_over_tokens
from rllib_vlm.errors import RLlibVLMError
from rllib_vlm.types import TokenCredit, Trajectory

_Floats = NDArray[np.float64]


@dataclass(slots=True, kw_only=True)
class Fit:
    """How well the baselines since the last `pop` foretold the rewards to come."""

    residual: float = 0.0  # sum of squares
    total: float = 0.0  # sum of squares about the mean

    def add(self, predicted: _Floats, togo: _Floats) -> None:
        self.residual += float(((togo - predicted) ** 2).sum())
        self.total += float(((togo - togo.mean()) ** 2).sum()) if len(togo) else 0.0

    def pop(self) -> dict[str, float]:
        """The share of variance explained, for the metrics; starts again at nothing."""
        explained = 1.0 - self.residual / self.total if self.total > 0.0 else 0.0
        self.residual = self.total = 0.0
        return {"baseline_explained_variance": explained}


@dataclass(slots=True, kw_only=True)
class FittedGAE:
    """GAE over turns whose values come from a regression on the simulator's own state.

    A simulator may tell in `info["state"]` what a policy cannot see: metres to go, what is held, steps left.
    With x_n those numbers and the turn's number, standardised, all their products of two and 1, the value of turn n
    is V_n = w . phi(x_n), where w minimises::

        sum_m (G_m - w . phi(x_m))^2 + ridge |w|^2        G_n = sum_{m >= n} gamma^(m-n) r_m

    over the turns of the other episodes: they are dealt into `folds`, and those of a fold are valued by what
    was fitted to the rest, so that no action is compared with its own outcome. Then, as in `turn_gae`::

        delta_n = r_n + gamma V_{n+1} - V_n          A_n = sum_j (gamma lam)^j delta_{n+j}

    with nothing after the last turn, cut or not. There is no network to teach and none to keep: after a change of
    the policy the next update's baseline is right at once. One episode alone has no baseline (V = 0).

    Sources: the linear feature baseline of Duan et al., "Benchmarking Deep Reinforcement Learning for Continuous
    Control" (arXiv 1604.06778), section 5; a critic that knows more than its policy: Pinto et al. (arXiv
    1710.06542); GAE: arXiv 1506.02438.
    """

    gamma: float = 0.99
    lam: float = 0.95
    ridge: float = 100.0
    folds: int = 8
    figures: Fit = field(default_factory=Fit, init=False, repr=False, compare=False)
    stage: ClassVar[Literal["group", "update", "learner"]] = "update"

    def __post_init__(self) -> None:
        check_fractions("fitted_gae", gamma=self.gamma, lam=self.lam)
        if self.ridge <= 0.0:
            raise RLlibVLMError(f"fitted_gae: ridge is {self.ridge}, it must be above 0.")
        if self.folds < 2:
            raise RLlibVLMError(f"fitted_gae: folds is {self.folds}, it must be 2 or more.")

    def __call__(self, group: Sequence[Trajectory]) -> list[list[TokenCredit]]:
        played = [t for t in group if t.turns]
        features = _features(played)
        rewards = [np.array(t.turn_rewards, np.float64) for t in played]
        togo = [rewards_to_go(list(r), self.gamma) for r in rewards]
        values = self._values(features, togo)
        if played:
            self.figures.add(np.concatenate(values), np.concatenate(togo))
        credit = (
            spread_over_tokens(t, generalized_advantages(r, v, 0.0, gamma=self.gamma, lam=self.lam))
            for t, r, v in zip(played, rewards, values, strict=True)
        )
        return [next(credit) if t.turns else [] for t in group]

    def _values(self, features: Sequence[_Floats], togo: Sequence[_Floats]) -> list[_Floats]:
        """[N] of each episode, from the others' `features` [N, F] and rewards to go [N]."""
        # Dealt by what they hold and not by their place, so that the order of episodes does not matter.
        order = sorted(range(len(togo)), key=lambda i: (togo[i].tolist(), features[i].tolist()))
        fold = np.empty(len(togo), np.int64)
        fold[order] = np.arange(len(togo)) % self.folds
        values: list[_Floats] = [np.zeros(len(g)) for g in togo]
        for k in range(min(self.folds, len(togo))):
            rest = [i for i in range(len(togo)) if fold[i] != k]
            if not rest:
                continue
            x = np.concatenate([features[i] for i in rest])
            g = np.concatenate([togo[i] for i in rest])
            mean = g.mean()
            weights = np.linalg.solve(x.T @ x + self.ridge * np.eye(x.shape[1]), x.T @ (g - mean))
            # A quadratic runs away outside of what it was fitted to; no return of the others is out there.
            for i in np.flatnonzero(fold == k).tolist():
                values[i] = np.clip(mean + features[i] @ weights, g.min(), g.max())
        return values


def _features(trajectories: Sequence[Trajectory]) -> list[_Floats]:
    """[N, F] of each trajectory: its turns' states and numbers, standardised, and their products of two."""
    if not trajectories:
        return []
    names = sorted(trajectories[0].turns[0].state)
    rows = []
    for trajectory in trajectories:
        for n, turn in enumerate(trajectory.turns):
            if not turn.state or sorted(turn.state) != names:
                found = (
                    f"tells {', '.join(sorted(turn.state))}" if turn.state else "tells nothing of its state"
                )
                raise RLlibVLMError(
                    f"fitted_gae: turn {n} of group {trajectory.group!r} {found}. It needs a simulator that "
                    "puts the same numbers into info['state'] at each reset and turn"
                    + (f" ({', '.join(names)} elsewhere)" if names else "")
                    + "; or choose turn_gae or gae, whose critic reads prompts, or grpo, which needs none."
                )
            rows.append([n, *(turn.state[name] for name in names)])
    x = np.asarray(rows, np.float64)
    deviation = x.std(0)
    x = (x - x.mean(0)) / np.where(deviation > 1e-9, deviation, 1.0)
    i, j = np.triu_indices(x.shape[1])
    products = x[:, i] * x[:, j]
    x = np.concatenate([x, products - products.mean(0)], 1)
    return np.split(x, np.cumsum([len(t.turns) for t in trajectories])[:-1])
