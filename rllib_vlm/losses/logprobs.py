"""Log-probs of chosen tokens from hidden states, without ever holding logits of all positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from rllib_vlm.losses.entropy import entropy_from_logits
from rllib_vlm.losses.masking import at_least_float32


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedLogprobs:
    """Per gathered position."""

    logprobs: Tensor  # [N] nats
    entropy: Tensor | None  # [N] nats, where it was asked for


def selected_logprobs(
    hidden: Tensor,
    logits_fn: Callable[[Tensor], Tensor],
    ids: Tensor,
    *,
    chunk: int = 1024,
    with_entropy: bool = False,
    checkpoint: bool = True,
) -> SelectedLogprobs:
    """Log-probs of `ids` under the logits of `hidden`, in float32 and with gradient.

    Give only the positions that predict a token which counts: with V = 150,000 the logits of one
    thousand positions already take 600 MB. Each chunk's logits are dropped after the forward and
    computed again in the backward pass, so one chunk is the peak.

    Args:
        hidden: [N, D] hidden states at the positions that *predict* the tokens.
        logits_fn: maps [n, D] to [n, V]; temperature and bans belong in it, so that the distribution
            is the one that sampled.
        ids: int64 [N], the tokens.
        chunk: positions at a time.
        with_entropy: also the entropy of the same distributions.
        checkpoint: recompute logits in the backward pass (less memory) or keep them (faster).
    """
    keep_memory_low = checkpoint and torch.is_grad_enabled()
    pieces: list[tuple[Tensor, Tensor]] = []
    for states, tokens in zip(torch.split(hidden, chunk), torch.split(ids, chunk), strict=True):
        if keep_memory_low:
            pieces.append(recompute(_piece, states, logits_fn, tokens, with_entropy, use_reentrant=False))
        else:
            pieces.append(_piece(states, logits_fn, tokens, with_entropy))
    logprobs = torch.cat([p[0] for p in pieces])
    return SelectedLogprobs(
        logprobs=logprobs, entropy=torch.cat([p[1] for p in pieces]) if with_entropy else None
    )


def _piece(
    hidden: Tensor, logits_fn: Callable[[Tensor], Tensor], ids: Tensor, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    logits = at_least_float32(logits_fn(hidden))
    logprobs = logits.gather(-1, ids[:, None])[:, 0] - logits.logsumexp(-1)
    return logprobs, entropy_from_logits(logits) if with_entropy else logprobs.detach()
