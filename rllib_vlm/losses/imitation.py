"""Imitation: the negative log-likelihood of an expert's tokens."""

from __future__ import annotations

from torch import Tensor

from rllib_vlm.losses.masking import masked, masked_mean


def negative_log_likelihood(
    logprobs: Tensor, mask: Tensor, *, weights: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Per-token loss -w log p(token), the cross-entropy of supervised fine-tuning.

    Args:
        logprobs: [B, L] nats of the expert's tokens, with gradient.
        mask: bool [B, L], the tokens to imitate.
        weights: [B, L] importance of each token, for example less for phrases that every answer
            shares; None is 1 everywhere.

    Returns:
        The loss [B, L] in float32, and detached scalars over the mask: `nll` (nats per token, without
        weights) and `perplexity`.
    """
    loss = -masked(logprobs, mask)
    nll = masked_mean(loss, mask)
    if weights is not None:
        loss = loss * masked(weights, mask)
    return loss, {"nll": nll, "perplexity": nll.clamp(max=80.0).exp()}
