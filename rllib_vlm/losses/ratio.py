"""The importance ratio of a token, or the one its whole turn or sequence shares."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from rllib_vlm.errors import UnknownNameError
from rllib_vlm.losses.masking import LOG_RATIO_BOUND, masked

RatioLevel = Literal["token", "turn", "sequence"]


def token_log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """[B, L] log of each token's importance ratio, cut at +-20, 0 off the mask; with gradient.

    Args:
        logprobs: [B, L] nats, at the current weights.
        old_logprobs: [B, L] nats, of the weights that sampled.
        mask: bool [B, L], the sampled tokens that count.
    """
    d = masked(logprobs, mask) - masked(old_logprobs, mask)
    return d.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)


def at_level(
    log_ratio: Tensor,
    mask: Tensor,
    level: RatioLevel,
    *,
    turn_ids: Tensor | None = None,
    segment_ids: Tensor | None = None,
) -> Tensor:
    """[B, L] the log-ratio that counts for each token: its own, or the mean over its turn or sequence.

    The mean is GSPO's: the geometric mean of the tokens' ratios, so that long answers are not clipped sooner.

    Args:
        log_ratio: [B, L] as from `token_log_ratio`.
        mask: bool [B, L]; the other tokens are in no mean.
        level: "token", "turn" or "sequence".
        turn_ids: int64 [B, L], -1 where nothing was sampled; needed at level "turn".
        segment_ids: int64 [B, L], 1..k along each packed row and 0 for padding; None is one sequence a row.

    Raises:
        UnknownNameError: no such level.

    Source: GSPO (arXiv 2507.18071), equation 7.
    """
    if level not in get_args(RatioLevel):
        raise UnknownNameError("ratio levels", level, get_args(RatioLevel))
    if level == "token":
        return log_ratio
    groups = torch.zeros_like(mask, dtype=torch.int64) if segment_ids is None else segment_ids
    if level == "turn":
        assert turn_ids is not None
        turns = turn_ids.clamp(min=-1) + 1
        groups = groups * (int(turns.max()) + 1) + turns
    width = int(groups.max()) + 1 if groups.numel() else 1
    sums = log_ratio.new_zeros(len(log_ratio), width).scatter_add(1, groups, log_ratio)
    counts = log_ratio.new_zeros(len(log_ratio), width).scatter_add(1, groups, mask.to(log_ratio.dtype))
    return torch.where(mask, (sums / counts.clamp(min=1)).gather(1, groups), 0.0)
