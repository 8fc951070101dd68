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
    huber: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Per-token squared error of the critic, never better than a step of `clip` allows.

    With v' = v_old + clip(v - v_old, -clip, clip)::

        loss = max(h(v - R), h(v' - R))          clip=None:  h(v - R)

    where h(e) = e^2 / 2, or with `huber` = d beyond |e| = d the line d (|e| - d / 2), so that outliers pull no
    harder than d.

    Args:
        values: [B, L] at the current weights, with gradient.
        old_values: [B, L] when the advantages were estimated; unused without `clip`.
        returns: [B, L] targets.
        mask: bool [B, L], tokens whose return is a target.
        clip: largest useful change of a value in one update, in units of the return.
        huber: error from which on the loss grows linearly, in units of the return; None is never.

    Returns:
        The loss [B, L] in float32, and detached scalars: `value_clip_fraction`, `value_mean`,
        `explained_variance`.

    Source: the PPO implementation of OpenAI baselines (ppo2), described in "The 37 Implementation
    Details of Proximal Policy Optimization" (2022), detail 9; P. Huber, "Robust Estimation of a Location
    Parameter" (1964).
    """
    values, returns = masked(values, mask), masked(returns, mask)
    loss = _penalty(values - returns, huber)
    is_clipped = torch.zeros_like(mask)
    if clip is not None:
        old_values = masked(old_values, mask)
        near = old_values + (values - old_values).clamp(-clip, clip)
        clipped = _penalty(near - returns, huber)
        is_clipped = clipped > loss
        loss = torch.maximum(loss, clipped)
    metrics = {
        "value_clip_fraction": masked_mean(is_clipped, mask),
        "value_mean": masked_mean(values, mask),
        "explained_variance": explained_variance(values, returns, mask),
    }
    return loss, metrics


def _penalty(error: Tensor, huber: float | None) -> Tensor:
    if huber is None:
        return 0.5 * error.square()
    return torch.nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=huber)


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
