"""Stops an update that goes wrong, minibatch by minibatch, with all learners of one mind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from rllib_vlm.errors import ConfigErrors, did_you_mean

GuardAction = Literal["skip", "stop", "abandon"]
_LIMITS = {
    "max_kl": 0,
    "max_ratio": 1,
    "max_ratio_p99": 1,
    "max_clip_fraction": 0,
    "max_grad_norm": 0,
}  # above what


@dataclass(frozen=True, slots=True, kw_only=True)
class StepGuard:
    """`training.step_guard`: limits of one optimizer step, and what is done beyond them. None is no limit.

    What is measured is where the steps before have brought the policy, so that it is the next step that is not taken::

        skip       this step is left out, the update goes on with the next minibatch
        stop       this step and the rest of the update are left out; what was learnt so far stays
        abandon    the update never happened: weights and optimizers are as before it

    A loss or gradient that is not finite is left out whatever is set here.

    Source: stopping at a KL is Spinning Up's PPO (2018); abandoning at a mean ratio is RLinf's `early_stop_imp_ratio`.
    """

    max_kl: float | None = None  # k3 of the sampling against the present policy, mean over tokens, nats
    max_ratio: float | None = None  # largest importance ratio, or 1 / the smallest
    max_ratio_p99: float | None = None  # factor of 1 that 99% of the ratios keep to, in each micro-batch
    max_clip_fraction: float | None = None
    max_grad_norm: float | None = None  # before clipping
    action: GuardAction = "stop"

    def __post_init__(self) -> None:
        errors = [
            f"{name} is {value!r}; it must be a number above {least:g}, or nothing"
            for name, least in _LIMITS.items()
            if (value := getattr(self, name)) is not None
            and (isinstance(value, bool) or not isinstance(value, int | float) or not value > least)
        ]
        if self.action not in get_args(GuardAction):
            known = get_args(GuardAction)
            errors.append(
                f"action is {self.action!r}.{did_you_mean(str(self.action), known)} Known: {', '.join(known)}"
            )
        if errors:
            raise ConfigErrors("step_guard", errors)

    @property
    def watches(self) -> bool:
        """Whether there is a limit."""
        return any(getattr(self, name) is not None for name in _LIMITS)

    def violations(self, seen: StepFigures, grad_norm: float) -> list[str]:
        """What of this step is beyond its limit, as "name value > limit"."""
        found = {
            "max_kl": seen.kl,
            "max_ratio": seen.ratio,
            "max_ratio_p99": seen.ratio_p99,
            "max_clip_fraction": seen.clip_fraction,
            "max_grad_norm": grad_norm,
        }
        limits = {name: getattr(self, name) for name in found}
        return [
            f"{name.removeprefix('max_')} {value:.4g} > {limit:g}"
            for name, value in found.items()
            if (limit := limits[name]) is not None and not value <= limit  # NaN is beyond every limit
        ]


@dataclass(slots=True)
class StepFigures:
    """Of one optimizer step, collected over its micro-batches, then exchanged with the other learners."""

    tokens: float = 0.0
    kl_sum: float = 0.0
    clipped: float = 0.0
    ratio: float = 1.0
    ratio_p99: float = 1.0
    loss: float = 0.0  # this learner's share of the step's, all terms

    def add(self, metrics: dict[str, Tensor], tokens: float) -> None:
        """A micro-batch's metrics of the policy loss, and how many tokens they are means over."""
        if not tokens:
            return
        self.tokens += tokens
        self.kl_sum += float(metrics["approx_kl"]) * tokens
        self.clipped += float(metrics["clip_fraction"]) * tokens
        low, high = float(metrics["ratio_min"]), float(metrics["ratio_max"])
        self.ratio = max(self.ratio, high, 1.0 / low if low > 0.0 else math.inf)
        self.ratio_p99 = max(self.ratio_p99, float(metrics["ratio_p99"]))

    def join(self, others: list[Any]) -> StepFigures:
        """Of all learners together."""
        return StepFigures(
            tokens=sum(o.tokens for o in others),
            kl_sum=sum(o.kl_sum for o in others),
            clipped=sum(o.clipped for o in others),
            ratio=max(o.ratio for o in others),
            ratio_p99=max(o.ratio_p99 for o in others),
            loss=sum(o.loss for o in others),
        )

    @property
    def kl(self) -> float:
        return self.kl_sum / max(self.tokens, 1.0)

    @property
    def clip_fraction(self) -> float:
        return self.clipped / max(self.tokens, 1.0)
