"""How far the policy has gone from a reference, per token."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from rllib_vlm.errors import UnknownNameError
from rllib_vlm.losses.masking import LOG_RATIO_BOUND, masked

KLEstimator = Literal["k1", "k2", "k3"]


def kl_penalty(
    logprobs: Tensor,
    reference_logprobs: Tensor,
    mask: Tensor,
    *,
    estimator: KLEstimator = "k3",
) -> Tensor:
    """[B, L] estimates, in nats, of KL(policy || reference) at sampled tokens; 0 off the mask.

    With d = logprob - reference_logprob, cut at +-20::

        k1 = d                      unbiased, may be negative; its gradient has mean 0: a reward, not a loss
        k2 = d^2 / 2                biased value; its gradient is unbiased for tokens of the current policy
        k3 = exp(-d) - 1 + d        unbiased, never negative, lower variance

    Args:
        logprobs: [B, L] nats, with gradient.
        reference_logprobs: [B, L] nats; no gradient flows into them.
        mask: bool [B, L].
        estimator: which of the three.

    Raises:
        UnknownNameError: no such estimator.

    Source: J. Schulman, "Approximating KL Divergence" (2020); the remark on gradients from
    arXiv 2506.09477.
    """
    d = masked(logprobs, mask) - masked(reference_logprobs.detach(), mask)
    d = d.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    if estimator == "k1":
        return d
    if estimator == "k2":
        return 0.5 * d.square()
    if estimator == "k3":
        return (-d).exp() - 1.0 + d
    raise UnknownNameError("KL estimator", estimator, get_args(KLEstimator))
