"""GSPO: the clipped surrogate of whole sequences."""

from __future__ import annotations

from torch import Tensor

from rllib_vlm.losses.clip import Clip
from rllib_vlm.losses.ppo_clip import ppo_clip


def gspo(ratio: Tensor, logprobs: Tensor, advantages: Tensor, clip: Clip) -> tuple[Tensor, Tensor]:
    """`ppo_clip` of the sequence's ratio, which is the geometric mean over its tokens y::

        s = (prod_t r_t)^(1 / |y|)          loss of each token = -min(s * A, clip(s, 1 - clip.low, 1 + clip.high) * A)

    and where it is clipped, [B, L] each. `ratio` is s already (`policy.POLICY_LOSSES` asks for it whatever
    `ratio_level` says). Means of many tokens stay near 1, so that clips are small: 3e-4 and 4e-4 in the paper.

    Source: Zheng et al., "Group Sequence Policy Optimization" (arXiv 2507.18071), equations 5 to 7.
    """
    return ppo_clip(ratio, logprobs, advantages, clip)
