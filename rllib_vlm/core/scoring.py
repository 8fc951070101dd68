"""Log-probs of sampled tokens under the distribution that sampled them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from rllib_vlm.losses.entropy import entropy_from_logits
from rllib_vlm.losses.logprobs import SelectedLogprobs, selected_logprobs
from rllib_vlm.losses.projected import projected_logprobs
from rllib_vlm.models.sampling import apply_sampling
from rllib_vlm.types import SamplingParams

_SMALL_LOGITS_BYTES = 128 * 2**20  # that many are kept for the backward pass, of few tokens all
_NUCLEUS_BYTES = 64 * 2**20  # of a chunk's logits; sorting them takes about ten times as much


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLayer:
    """What turns states into logits."""

    logits: Callable[[Tensor], Tensor]  # [n, D] to [n, V], banned ids at -inf
    vocab_size: int  # V
    # Where logits are states @ weight.T but for the bans; None where the layer is more than that.
    weight: Tensor | None = None  # [V, D]
    banned: tuple[int, ...] = ()  # sorted


def score_tokens(
    states: Tensor,
    layer: OutputLayer,
    token_ids: Tensor,
    sampling: SamplingParams,
    *,
    chunk: int = 1024,
    with_entropy: bool = False,
) -> SelectedLogprobs:
    """Log-probs (nats, float32, with gradient) of `token_ids` [N] given the states [N, D] that predict them.

    Where all logits are small they are kept, which is faster than computing them twice. Where not, they pass in
    tiles (`losses.projected`); under a nucleus, whose tokens are known only when a position's logits are sorted, or
    with adapters on the output layer, in chunks of positions.

    Args:
        states: [N, D].
        layer: the output layer.
        token_ids: int64 [N].
        sampling: temperature and top-p; a temperature of 0 means log-probs at temperature 1.
        chunk: positions whose logits are held at a time, where they are not small.
        with_entropy: also the entropy of the distributions.
    """
    if not len(token_ids):
        # Still part of the graph: a learner without data must take part in the backward pass.
        zeros = states.sum(-1).float() * 0.0
        return SelectedLogprobs(logprobs=zeros, entropy=zeros if with_entropy else None)
    if sampling.top_p < 1.0 and sampling.temperature > 0.0:
        return _under_nucleus(states, layer, token_ids, sampling, chunk, with_entropy)
    temperature = sampling.temperature or 1.0
    small = len(token_ids) * layer.vocab_size * 4 <= _SMALL_LOGITS_BYTES
    if layer.weight is not None and not small:
        return projected_logprobs(
            states,
            layer.weight,
            token_ids,
            temperature=temperature,
            banned=layer.banned,
            with_entropy=with_entropy,
            rows=chunk,
            keep_bytes=_SMALL_LOGITS_BYTES,
        )
    logits = layer.logits
    return selected_logprobs(
        states,
        logits if temperature == 1.0 else lambda some: logits(some) / temperature,
        token_ids,
        chunk=len(token_ids) if small else chunk,
        with_entropy=with_entropy,
        checkpoint=not small,
    )


def _under_nucleus(
    states: Tensor,
    layer: OutputLayer,
    token_ids: Tensor,
    sampling: SamplingParams,
    chunk: int,
    with_entropy: bool,
) -> SelectedLogprobs:
    chunk = max(1, min(chunk, _NUCLEUS_BYTES // (4 * layer.vocab_size)))
    pieces = [
        recompute(_nucleus_piece, s, layer.logits, ids, sampling, with_entropy, use_reentrant=False)
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
