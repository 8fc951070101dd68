"""CISPO: REINFORCE with a clipped importance weight."""

from __future__ import annotations

from torch import Tensor

from rllib_vlm.losses.clip import Clip


def cispo(ratio: Tensor, logprobs: Tensor, advantages: Tensor, clip: Clip) -> tuple[Tensor, Tensor]:
    """The loss, and where its weight is clipped, [B, L] each::

        loss = -stop_gradient(clip(ratio, 1 - clip.low, 1 + clip.high)) * A * logprob

    No token loses its gradient. The paper does not clip from below (`clip.low` 1). There is no dual clip: the weight is
    bounded.

    Source: MiniMax-M1 (arXiv 2506.13585), equations 4 and 5.
    """
    weight = clip(ratio.detach())
    return -weight * advantages * logprobs, weight != ratio.detach()
