"""PPO's clipped surrogate, with clip-higher and the dual clip."""

from __future__ import annotations

import torch
from torch import Tensor

from rllib_vlm.losses.clip import Clip


def ppo_clip(ratio: Tensor, logprobs: Tensor, advantages: Tensor, clip: Clip) -> tuple[Tensor, Tensor]:
    """The loss, and where it is clipped, [B, L] each::

        loss = -min(ratio * A, clip(ratio, 1 - clip.low, 1 + clip.high) * A)

    and, with `clip.dual` = c > 1, at most -c * A where A < 0. The gradient is exactly 0 outside the clip;
    `logprobs` are not read, it flows through the ratio.

    Source: PPO (arXiv 1707.06347) equation 7; clip-higher, a larger `clip.high`, from DAPO (arXiv 2503.14476); the
    dual clip from arXiv 1912.09729.
    """
    unclipped = -ratio * advantages
    clipped = -clip(ratio) * advantages
    loss = torch.maximum(unclipped, clipped)
    is_clipped = clipped > unclipped
    if clip.dual is not None:
        bound = -clip.dual * advantages
        beyond = (advantages < 0) & (loss > bound)
        loss = torch.where(beyond, bound, loss)
        is_clipped = is_clipped | beyond
    return loss, is_clipped
