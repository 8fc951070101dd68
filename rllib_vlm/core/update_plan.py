"""What one update is told: its losses, learning rate and cut into optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rllib_vlm.core.loss_terms import LossSettings
from rllib_vlm.core.step_guard import StepGuard
from rllib_vlm.models.precision import Precision

KLPlace = Literal["loss", "reward"]
Reference = Literal["copy", "adapters_off"]
Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatePlan:
    """Travels from the driver to every learner.

    An *optimizer step* reads `minibatch_size` rows, counted over all learners; a row is a turn, or
    several turns that share one growing prompt.
    """

    losses: LossSettings
    lr: float
    value_lr: float | None = None  # of the value head; None is `lr`
    num_epochs: int = 1
    minibatch_size: int | None = None  # None reads everything in one step
    seed: int = 0  # of the order of rows
    normalize_advantages: bool = False
    drop_uninformative: bool = False  # leave out rows without any advantage
    downsample: float = 1.0  # share of the rows that are learnt from, those of the largest advantages
    expects_credit: bool = True  # False for imitation
    precision: Precision = "float32"  # of the model's matrix products in training
    guard: StepGuard = field(default_factory=StepGuard)
    kl_reward: float = 0.0  # a token is rewarded with -kl_reward * (logprob - reference's), nats
    reference: Reference = "copy"

    @property
    def needs_reference(self) -> bool:
        return bool(self.kl_reward or self.losses.active.get("kl"))


def learning_rate(
    base: float,
    update: int,
    *,
    schedule: Schedule = "constant",
    warmup: int = 0,
    total: int | None = None,
    final_fraction: float = 0.0,
    spent: float = 0.0,
) -> float:
    """The rate of update number `update` (from 0), counted over the whole run, so that a resumed run continues it.

    A linear warm-up over the first `warmup` updates, then constant, or falling to
    `final_fraction * base` at update `total`, or when all time is `spent` if that is sooner.

    Args:
        base: the rate after the warm-up.
        update: from 0.
        schedule: how it falls.
        warmup: updates.
        total: updates at which it has fallen; None: never.
        final_fraction: of `base`, that it falls to.
        spent: share of the time budget that is used up; 0 where the clock has no say.
    """
    if update < warmup:
        return base * (update + 1) / (warmup + 1)
    if schedule == "constant" or total is None:
        return base
    progress = min(1.0, max(spent, (update - warmup) / max(1, total - warmup)))
    fall = 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return base * (final_fraction + (1.0 - final_fraction) * fall)


def step_assignment(
    counts: Sequence[int], *, epoch: int, minibatch_size: int | None, seed: int
) -> tuple[NDArray[np.int64], int]:
    """Which optimizer step of an epoch reads which row, the same on every learner.

    All learners see the row counts of all episodes, so the steps are made of the same rows however
    many learners share them: two learners take the steps that one would.

    Args:
        counts: rows of each episode of the update, in the order of the episodes.
        epoch: of the update; every epoch has its own order.
        minibatch_size: rows of a step; the last rows are spread evenly, so that steps differ by one row at most.
        seed: of the update.

    Returns:
        The step [sum(counts)] of each row, rows in the order of episodes, and the number of steps.
    """
    total = int(sum(counts))
    steps = 1 if minibatch_size is None else max(1, round(total / minibatch_size))
    if steps == 1:
        return np.zeros(total, np.int64), 1
    order = np.random.default_rng([seed, epoch]).permutation(total)
    assignment = np.empty(total, np.int64)
    for step, rows in enumerate(np.array_split(order, steps)):
        assignment[rows] = step
    return assignment, steps
