"""Entropy of next-token distributions."""

from __future__ import annotations

import torch
from torch import Tensor

from rllib_vlm.losses.masking import at_least_float32


def entropy_from_logits(logits: Tensor, *, chunk: int | None = None) -> Tensor:
    """[...] entropy in nats of softmax(logits), logits [..., V]; with gradient.

    H = logsumexp(z) - sum_v softmax(z)_v z_v. Banned tokens (logit -inf) have probability 0 and take no part.

    Args:
        logits: [..., V]; each row holds at least one finite logit.
        chunk: rows at a time, which bounds the temporary memory to two arrays of [chunk, V] without
            gradient; None is all at once.
    """
    rows = logits.reshape(-1, logits.shape[-1])
    pieces = [rows] if chunk is None else list(torch.split(rows, chunk))
    if not len(rows):
        return at_least_float32(logits).sum(-1)
    return torch.cat([_entropy(piece) for piece in pieces]).reshape(logits.shape[:-1])


def _entropy(logits: Tensor) -> Tensor:
    logits = at_least_float32(logits)
    # 0 * -inf would be NaN, in the value and in the gradient.
    finite = logits.masked_fill(logits == -torch.inf, 0.0)
    return logits.logsumexp(-1) - (logits.softmax(-1) * finite).sum(-1)
