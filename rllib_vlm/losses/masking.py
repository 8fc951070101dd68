"""Masks that also stop gradients, and means over them."""

from __future__ import annotations

import torch
from torch import Tensor

# e^20 is 5e8: beyond any ratio that could teach something, far below float32's limit.
LOG_RATIO_BOUND = 20.0


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """`values` in at least float32, 0 where `mask` is false.

    Selecting before any arithmetic keeps infinities and NaN of padding out of the gradient, where a
    later multiplication with 0 would not.
    """
    return torch.where(mask, at_least_float32(values), 0.0)


def at_least_float32(values: Tensor) -> Tensor:
    """bfloat16 and float16 as float32; float64 stays, so that gradients can be checked numerically."""
    return values if values.dtype == torch.float64 else values.float()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the entries where `mask` is true, 0 of none; detached, a scalar for metrics."""
    return masked(values.detach(), mask).sum() / mask.sum().clamp(min=1)
