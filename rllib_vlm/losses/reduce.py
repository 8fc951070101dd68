"""From a column of losses to one number, the same however the batch was cut.

A *sequence* is one segment of a packed row: one row before packing, that is one turn, or several turns
that share a prefix.

Every mode is a weighted sum divided by a normaliser that belongs to the whole batch::

    token_mean                 sum of all tokens            / tokens
    sequence_mean_token_sum    sum of all tokens            / sequences
    sequence_mean_token_mean   sum of each sequence's mean  / sequences
    fixed                      sum of all tokens            / (sequences x a constant)

Gradient accumulation and several learners, in four lines::

    total = sum(normalizer(m["loss_mask"], m["segment_ids"], mode) for m in micro_batches)
    total = all_reduce_sum(total)
    for m in micro_batches:
        reduce(column(m), m["loss_mask"], m["segment_ids"], mode, total / learners).backward()

where the division by the number of learners undoes that data-parallel training *averages* gradients.

Source: token_mean is DAPO's (arXiv 2503.14476), sequence_mean_token_mean the original GRPO's
(arXiv 2402.03300), fixed with the longest answer as constant Dr. GRPO's (arXiv 2503.20783).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from rllib_vlm.errors import RLlibVLMError, UnknownNameError
from rllib_vlm.losses.masking import masked

Reduction = Literal["token_mean", "sequence_mean_token_sum", "sequence_mean_token_mean", "fixed"]


def reduce(
    loss: Tensor,
    mask: Tensor,
    segment_ids: Tensor | None,
    mode: Reduction,
    normalizer: Tensor | float,
) -> Tensor:
    """Scalar loss of this (micro-)batch's share of the whole batch.

    Args:
        loss: [B, L].
        mask: bool [B, L], the tokens that count.
        segment_ids: int64 [B, L], 1..k along each row and 0 for padding; None is one sequence per row.
        mode: see the module.
        normalizer: what `normalizer` gives for the whole batch, summed over micro-batches and learners;
            any positive number of your own works too. 0 (nothing to learn from) gives 0.

    Raises:
        UnknownNameError: no such mode.
    """
    _check(mode)
    loss = masked(loss, mask)
    if mode == "sequence_mean_token_mean":
        loss = loss / _tokens_of_own_sequence(mask, segment_ids).clamp(min=1)
    total = loss.sum()
    normalizer = torch.as_tensor(normalizer, dtype=total.dtype, device=total.device)
    return total / torch.where(normalizer > 0, normalizer, 1.0)


def normalizer(
    mask: Tensor, segment_ids: Tensor | None, mode: Reduction, *, constant: float | None = None
) -> Tensor:
    """This (micro-)batch's part of the normaliser: a float32 scalar, to be summed over all parts.

    Sequences without a token that counts are not counted. In mode `fixed`, the part is
    sequences x `constant`, so that `constant` is the divisor per sequence, for example the longest
    allowed answer.

    Raises:
        UnknownNameError: no such mode.
        RLlibVLMError: mode `fixed` without a positive `constant`.
    """
    _check(mode)
    if mode == "token_mean":
        return mask.sum().float()
    sequences = _count_sequences(mask, segment_ids).float()
    if mode != "fixed":
        return sequences
    if constant is None or constant <= 0:
        raise RLlibVLMError(
            f"Reduction 'fixed' needs a positive constant, got {constant!r}. "
            "Give the longest answer in tokens, or choose 'token_mean'."
        )
    return sequences * constant


def _tokens_per_sequence(mask: Tensor, segment_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """([B, S] counting tokens of each sequence, [B, L] the sequence's position in its row of counts)."""
    where = torch.zeros_like(mask, dtype=torch.int64) if segment_ids is None else segment_ids
    width = int(where.max()) + 1 if where.numel() else 1
    counts = torch.zeros(len(mask), width, dtype=torch.int64, device=mask.device)
    return counts.scatter_add(1, where, mask.long()), where


def _tokens_of_own_sequence(mask: Tensor, segment_ids: Tensor | None) -> Tensor:
    counts, where = _tokens_per_sequence(mask, segment_ids)
    return counts.gather(1, where)


def _count_sequences(mask: Tensor, segment_ids: Tensor | None) -> Tensor:
    return (_tokens_per_sequence(mask, segment_ids)[0] > 0).sum()


def _check(mode: str) -> None:
    if mode not in get_args(Reduction):
        raise UnknownNameError("loss reduction", mode, get_args(Reduction))
