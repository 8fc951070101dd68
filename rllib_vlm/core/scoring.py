"""Log-probs of sampled tokens under the distribution that sampled them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from rllib_vlm.losses.entropy import entropy_from_logits
from rllib_vlm.losses.logprobs import SelectedLogprobs, selected_logprobs
from rllib_vlm.models.sampling import apply_sampling
from rllib_vlm.types import SamplingParams

_SMALL_LOGITS_BYTES = 128 * 2**20


def score_tokens(
    states: Tensor,
    logits: Callable[[Tensor], Tensor],
    token_ids: Tensor,
    sampling: SamplingParams,
    *,
    vocab_size: int,
    chunk: int = 1024,
    with_entropy: bool = False,
) -> SelectedLogprobs:
    """Log-probs (nats, float32, with gradient) of `token_ids` [N] given the states [N, D] that predict them.

    Args:
        states: [N, D].
        logits: [n, D] to [n, V], banned ids at -inf.
        token_ids: int64 [N].
        sampling: temperature and top-p; a temperature of 0 means log-probs at temperature 1.
        vocab_size: V. Where all logits are small they are kept, which is faster than computing them twice.
        chunk: positions whose logits are held at a time, where they are not small.
        with_entropy: also the entropy of the distributions.
    """
    if not len(token_ids):
        # Still part of the graph: a learner without data must take part in the backward pass.
        zeros = states.sum(-1).float() * 0.0
        return SelectedLogprobs(logprobs=zeros, entropy=zeros if with_entropy else None)
    temperature = sampling.temperature or 1.0
    if sampling.top_p >= 1.0 or sampling.temperature == 0.0:
        scaled = logits if temperature == 1.0 else lambda states: logits(states) / temperature
        small = len(token_ids) * vocab_size * 4 <= _SMALL_LOGITS_BYTES
        return selected_logprobs(
            states,
            scaled,
            token_ids,
            chunk=len(token_ids) if small else chunk,
            with_entropy=with_entropy,
            checkpoint=not small,
        )
    pieces = [
        recompute(_nucleus_piece, s, logits, ids, sampling, with_entropy, use_reentrant=False)
        for s, ids in zip(states.split(chunk), token_ids.split(chunk), strict=True)
    ]
    return SelectedLogprobs(
        logprobs=torch.cat([p[0] for p in pieces]),
        entropy=torch.cat([p[1] for p in pieces]) if with_entropy else None,
    )


def _nucleus_piece(
    states: Tensor,
    logits: Callable[[Tensor], Tensor],
    token_ids: Tensor,
    sampling: SamplingParams,
    with_entropy: bool,
) -> tuple[Tensor, Tensor]:
    logprobs = apply_sampling(logits(states), sampling, keep=token_ids)
    chosen = logprobs.gather(-1, token_ids[:, None])[:, 0]
    return chosen, entropy_from_logits(logprobs) if with_entropy else chosen.detach()
