"""The clipped policy loss of PPO and its relatives."""

from __future__ import annotations

import torch
from torch import Tensor

from rllib_vlm.losses.masking import LOG_RATIO_BOUND, masked, masked_mean


def ppo_clip(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Per-token loss of the clipped surrogate, to be minimised.

    With ratio = exp(logprob - old_logprob)::

        loss = -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)

    and, with `dual_clip` = c > 1, at most -c * A where A < 0. The gradient is exactly 0 outside the
    clip. Log-ratios are cut at +-20, which only keeps the arithmetic finite.

    Args:
        logprobs: [B, L] nats, at the current weights, with gradient.
        old_logprobs: [B, L] nats, of the weights that sampled.
        advantages: [B, L].
        mask: bool [B, L], the sampled tokens that count.
        clip_low: how far below 1 a ratio still has a gradient where A < 0.
        clip_high: how far above 1 a ratio still has a gradient where A > 0; larger than `clip_low` is
            clip-higher.
        dual_clip: bound for A < 0, usually 3; None is no bound.

    Returns:
        The loss [B, L] in float32, and detached scalars over the mask: `clip_fraction` (share of tokens
        without gradient because of a clip), `ratio_max` and `ratio_min`, `ratio_mean`, and `approx_kl`
        (k3 of the old against the current policy, nats).

    Source: PPO (arXiv 1707.06347) equation 7; clip-higher from DAPO (arXiv 2503.14476); the dual clip
    from arXiv 1912.09729; approx_kl from J. Schulman, "Approximating KL Divergence" (2020).
    """
    log_ratio = masked(logprobs, mask) - masked(old_logprobs, mask)
    log_ratio = log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    advantages = masked(advantages, mask)
    ratio = log_ratio.exp()
    unclipped = -ratio * advantages
    clipped = -ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages
    loss = torch.maximum(unclipped, clipped)
    is_clipped = clipped > unclipped
    if dual_clip is not None:
        bound = -dual_clip * advantages
        beyond = (advantages < 0) & (loss > bound)
        loss = torch.where(beyond, bound, loss)
        is_clipped = is_clipped | beyond
    with torch.no_grad():
        metrics = {
            "clip_fraction": masked_mean(is_clipped, mask),
            "ratio_max": torch.where(mask, ratio, 1.0).max() if ratio.numel() else ratio.new_ones(()),
            "ratio_min": torch.where(mask, ratio, 1.0).min() if ratio.numel() else ratio.new_ones(()),
            "ratio_mean": masked_mean(ratio, mask),
            "approx_kl": masked_mean(ratio - 1.0 - log_ratio, mask),
        }
    return loss, metrics
