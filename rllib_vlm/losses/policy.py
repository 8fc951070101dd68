"""The policy losses, by name: PPO's clipped surrogate and its relatives, GSPO, and CISPO."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from rllib_vlm.errors import UnknownNameError
from rllib_vlm.losses.masking import masked, masked_mean
from rllib_vlm.losses.ratio import RatioLevel, at_level, token_log_ratio

PolicyLoss = Literal["ppo_clip", "gspo", "cispo"]


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
        name: "ppo_clip", "cispo", or "gspo", which is the first with the sequence's ratio whatever `level` says.
        level: whose ratio it is; for this and the next two see `ratio.at_level`.
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
    if name == "gspo":
        name, level = "ppo_clip", "sequence"
    of_tokens = token_log_ratio(logprobs, old_logprobs, mask)
    ratio = at_level(of_tokens, mask, level, turn_ids=turn_ids, segment_ids=segment_ids).exp()
    advantages = masked(advantages, mask)
    if name == "ppo_clip":
        loss, is_clipped = ppo_clip(ratio, advantages, clip_low, clip_high, dual_clip)
    elif name == "cispo":
        loss, is_clipped = cispo(ratio, masked(logprobs, mask), advantages, clip_low, clip_high)
    else:
        raise UnknownNameError("policy losses", name, get_args(PolicyLoss))
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


def ppo_clip(
    ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate, and where it is clipped, [B, L] each::

        loss = -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)

    and, with `dual_clip` = c > 1, at most -c * A where A < 0. The gradient is exactly 0 outside the clip.

    Source: PPO (arXiv 1707.06347) equation 7; clip-higher from DAPO (arXiv 2503.14476); the dual clip
    from arXiv 1912.09729.
    """
    unclipped = -ratio * advantages
    clipped = -ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages
    loss = torch.maximum(unclipped, clipped)
    is_clipped = clipped > unclipped
    if dual_clip is not None:
        bound = -dual_clip * advantages
        beyond = (advantages < 0) & (loss > bound)
        loss = torch.where(beyond, bound, loss)
        is_clipped = is_clipped | beyond
    return loss, is_clipped


def cispo(
    ratio: Tensor, logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """REINFORCE with a clipped importance weight, and where it is clipped, [B, L] each::

        loss = -stop_gradient(clip(ratio, 1 - clip_low, 1 + clip_high)) * A * logprob

    No token loses its gradient. The paper does not clip from below (`clip_low` 1).

    Source: MiniMax-M1 (arXiv 2506.13585), equations 4 and 5.
    """
    weight = ratio.detach().clamp(1.0 - clip_low, 1.0 + clip_high)
    return -weight * advantages * logprobs, weight != ratio.detach()
