"""Columns [B, L] for losses, with a mask that leaves out padding and a row of nothing."""

from __future__ import annotations

import torch

from rllib_vlm.losses.policy import policy_loss

B, L = 3, 5
MASK = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
TURNS = torch.tensor([[-1, 0, 0, 1, -1], [-1, -1, 0, 0, 1], [-1] * 5])
SEGMENTS = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 2, 2], [0] * 5])
IDS = {"turn_ids": TURNS, "segment_ids": SEGMENTS}


def column(seed, *, scale=1.0, grad=False):
    values = scale * torch.randn(B, L, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.requires_grad_(grad)


def one(ratio, advantage, **kwargs):
    """(loss, gradient by the log-prob, metrics) of a single token."""
    logprob = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    advantages = torch.tensor([[advantage]], dtype=torch.float64)
    loss, metrics = policy_loss(
        logprob, torch.zeros(1, 1), advantages, torch.ones(1, 1, dtype=torch.bool), **kwargs
    )
    (gradient,) = torch.autograd.grad(loss.sum(), logprob)
    return loss.item(), gradient.item(), metrics
