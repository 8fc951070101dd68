"""The loss as a sum of named terms: loss = sum_k coefficient_k * reduce(term_k).

A term maps a scored batch to a per-token column. The learner knows terms by name and nothing of the
algorithm that asked for them: PPO is `{"policy": 1, "value": 0.5}`, GRPO `{"policy": 1}`, supervised
fine-tuning `{"imitation": 1}`. A new term is one function and one row of `LOSS_TERMS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from rllib_vlm.core.columns import VLMColumns
from rllib_vlm.losses.imitation import negative_log_likelihood
from rllib_vlm.losses.kl import KLEstimator, kl_penalty
from rllib_vlm.losses.policy import PolicyLoss, policy_loss
from rllib_vlm.losses.ratio import RatioLevel
from rllib_vlm.losses.reduce import Reduction
from rllib_vlm.losses.value import value_loss

Columns = Mapping[str, Tensor]
Metrics = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """What the terms read beside the batch."""

    coefficients: Mapping[str, float]
    policy_loss: PolicyLoss = "ppo_clip"
    ratio_level: RatioLevel = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    value_clip: float | None = None
    value_huber: float | None = None
    entropy_floor: float | None = None
    kl_estimator: KLEstimator = "k3"
    reduction: Reduction = "token_mean"
    reduction_constant: float | None = None

    @property
    def active(self) -> dict[str, float]:
        """Terms with a coefficient other than 0."""
        return {name: c for name, c in self.coefficients.items() if c}


@dataclass(frozen=True, slots=True)
class LossTerm:
    """A term, and which mask says where it counts."""

    column: Callable[[Columns, Columns, LossSettings], tuple[Tensor, Metrics]]
    mask: Literal["loss_mask", "value_mask", "grounding_mask", "referring_mask"] = "loss_mask"


def _policy(out: Columns, batch: Columns, s: LossSettings) -> tuple[Tensor, Metrics]:
    loss, metrics = policy_loss(
        out[VLMColumns.LOGPROBS],
        batch["old_logprobs"],
        batch["advantages"],
        batch["loss_mask"],
        name=s.policy_loss,
        level=s.ratio_level,
        turn_ids=batch["turn_ids"],
        segment_ids=batch["segment_ids"],
        clip_low=s.clip_low,
        clip_high=s.clip_high,
        dual_clip=s.dual_clip,
    )
    return loss * batch["loss_weights"], metrics


def _value(out: Columns, batch: Columns, s: LossSettings) -> tuple[Tensor, Metrics]:
    return value_loss(
        out[VLMColumns.VALUES],
        batch["old_values"],
        batch["returns"],
        batch["value_mask"],
        clip=s.value_clip,
        huber=s.value_huber,
    )


def _entropy(out: Columns, batch: Columns, s: LossSettings) -> tuple[Tensor, Metrics]:
    entropy = out[VLMColumns.ENTROPY]
    # With a floor, only tokens below it are pushed up: a bonus everywhere pays for noise where none is wanted.
    return -(entropy if s.entropy_floor is None else entropy.clamp(max=s.entropy_floor)), {}


def _kl(out: Columns, batch: Columns, s: LossSettings) -> tuple[Tensor, Metrics]:
    return (
        kl_penalty(
            out[VLMColumns.LOGPROBS],
            batch["reference_logprobs"],
            batch["loss_mask"],
            estimator=s.kl_estimator,
        ),
        {},
    )


def _imitation(out: Columns, batch: Columns, s: LossSettings) -> tuple[Tensor, Metrics]:
    return negative_log_likelihood(out[VLMColumns.LOGPROBS], batch["loss_mask"])


def _grounding(out: Columns, batch: Columns, s: LossSettings) -> tuple[Tensor, Metrics]:
    return -out[VLMColumns.GROUNDING], {}


def _referring(out: Columns, batch: Columns, s: LossSettings) -> tuple[Tensor, Metrics]:
    return -out[VLMColumns.REFERRING], {}


LOSS_TERMS: dict[str, LossTerm] = {
    "policy": LossTerm(_policy),
    "value": LossTerm(_value, mask="value_mask"),
    "entropy": LossTerm(_entropy),
    "kl": LossTerm(_kl),
    "imitation": LossTerm(_imitation),
    "grounding": LossTerm(_grounding, mask="grounding_mask"),
    "referring": LossTerm(_referring, mask="referring_mask"),
}
