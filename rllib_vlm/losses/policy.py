"""The policy losses, by name, and what each says about how far the policy went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from rllib_vlm.errors import UnknownNameError
from rllib_vlm.losses.cispo import cispo
from rllib_vlm.losses.clip import Clip
from rllib_vlm.losses.gspo import gspo
from rllib_vlm.losses.masking import masked, masked_mean
from rllib_vlm.losses.ppo_clip import ppo_clip
from rllib_vlm.losses.ratio import RatioLevel, at_level, token_log_ratio

PolicyLoss = Literal["ppo_clip", "gspo", "cispo"]
# (ratio, log-probs, advantages, clip) to the loss of each token and where it is clipped, [B, L] all.
Surrogate = Callable[[Tensor, Tensor, Tensor, Clip], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class _Row:
    surrogate: Surrogate
    level: RatioLevel | None = None  # whose ratio it is by definition; None is as configured


POLICY_LOSSES: dict[PolicyLoss, _Row] = {
    "ppo_clip": _Row(ppo_clip),
    "gspo": _Row(gspo, level="sequence"),
    "cispo": _Row(cispo),
}


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    name: PolicyLoss = "ppo_clip",
    level: RatioLevel = "token",
    turn_ids: Tensor | None = None,
    segment_ids: Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Per-token loss, to be minimised, and what it says about how far the policy went.

    Args:
        logprobs: [B, L] nats, at the current weights, with gradient.
        old_logprobs: [B, L] nats, of the weights that sampled.
        advantages: [B, L].
        mask: bool [B, L], the sampled tokens that count.
        name: of the table; each stands in a file of its name.
        level: whose ratio it is, where the loss does not say; for this and the next two see `ratio.at_level`.
        turn_ids: int64 [B, L].
        segment_ids: int64 [B, L].
        clip_low: how far below 1 a ratio still counts in full.
        clip_high: how far above 1 a ratio still counts in full; larger than `clip_low` is clip-higher.
        dual_clip: see `ppo_clip`.

    Returns:
        The loss [B, L] in float32, and detached scalars over the mask: `clip_fraction` (share of tokens whose
        ratio the loss clips), `ratio_max`, `ratio_min`, `ratio_mean`, `ratio_p99` (99% of the ratios are
        within this factor of 1, up or down), and `approx_kl` (k3 of the old against the
        current policy, nats a token, whatever the level).

    Raises:
        UnknownNameError: no such loss or level.

    Source of `approx_kl`: J. Schulman, "Approximating KL Divergence" (2020).
    """
    row = POLICY_LOSSES.get(name)
    if row is None:
        raise UnknownNameError("policy losses", name, get_args(PolicyLoss))
    of_tokens = token_log_ratio(logprobs, old_logprobs, mask)
    log_ratio = at_level(of_tokens, mask, row.level or level, turn_ids=turn_ids, segment_ids=segment_ids)
    ratio = log_ratio.exp()
    clip = Clip(low=clip_low, high=clip_high, dual=dual_clip)
    loss, is_clipped = row.surrogate(ratio, masked(logprobs, mask), masked(advantages, mask), clip)
    with torch.no_grad():
        metrics = {
            "clip_fraction": masked_mean(is_clipped, mask),
            "ratio_max": torch.where(mask, ratio, 1.0).max() if ratio.numel() else ratio.new_ones(()),
            "ratio_min": torch.where(mask, ratio, 1.0).min() if ratio.numel() else ratio.new_ones(()),
            "ratio_mean": masked_mean(ratio, mask),
            "ratio_p99": _factor(ratio[mask], 0.99),
            "approx_kl": masked_mean(of_tokens.exp() - 1.0 - of_tokens, mask),
        }
    return loss, metrics


def _factor(ratios: Tensor, share: float) -> Tensor:
    """The factor by which this share of the ratios [N] is off 1 at most, 1 of none."""
    if not ratios.numel():
        return ratios.new_ones(())
    return torch.quantile(ratios.log().abs(), share).exp()
