"""The clipped value loss and how much of the returns the critic explains."""

from __future__ import annotations

import torch
from torch import Tensor

from rllib_vlm.losses.masking import masked, masked_mean


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Per-token squared error of the critic, never better than a step of `clip` allows.

    With v' = v_old + clip(v - v_old, -clip, clip)::

        loss = 0.5 max((v - R)^2, (v' - R)^2)          clip=None:  0.5 (v - R)^2

    Args:
        values: [B, L] at the current weights, with gradient.
        old_values: [B, L] when the advantages were estimated; unused without `clip`.
        returns: [B, L] targets.
        mask: bool [B, L], tokens whose return is a target.
        clip: largest useful change of a value in one update, in units of the return.

    Returns:
        The loss [B, L] in float32, and detached scalars: `value_clip_fraction`, `value_mean`,
        `explained_variance`.

    Source: the PPO implementation of OpenAI baselines (ppo2), described in "The 37 Implementation
    Details of Proximal Policy Optimization" (2022), detail 9.
    """
    values, returns = masked(values, mask), masked(returns, mask)
    loss = (values - returns).square()
    is_clipped = torch.zeros_like(mask)
    if clip is not None:
        old_values = masked(old_values, mask)
        near = old_values + (values - old_values).clamp(-clip, clip)
        clipped = (near - returns).square()
        is_clipped = clipped > loss
        loss = torch.maximum(loss, clipped)
    metrics = {
        "value_clip_fraction": masked_mean(is_clipped, mask),
        "value_mean": masked_mean(values, mask),
        "explained_variance": explained_variance(values, returns, mask),
    }
    return 0.5 * loss, metrics


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(R - V) / Var(R) over the mask: 1 is perfect, 0 no better than a constant.

    0 where the returns do not vary (there is nothing to explain).
    """
    values, returns = masked(values, mask), masked(returns, mask)
    variance = _variance(returns, mask)
    explained = 1.0 - _variance(returns - values, mask) / variance.clamp(min=1e-12)
    return torch.where(variance > 1e-12, explained, 0.0)


def _variance(values: Tensor, mask: Tensor) -> Tensor:
    return masked_mean((values - masked_mean(values, mask)).square(), mask)
