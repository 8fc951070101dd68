"""The sampling distribution, shared by generation and learning so that the two agree.

A completion's log-probs are those of the distribution that sampled it: after the bans, the
temperature and top-p. A learner that compares its own log-probs with them must put its logits
through the same function, or the importance ratio at unchanged weights is not 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rllib_vlm.types import SamplingParams

Seed = int | tuple[int, ...] | None


def apply_sampling(logits: Tensor, sampling: SamplingParams, *, keep: Tensor | None = None) -> Tensor:
    """Log-probs [..., V] of the distribution that `sampling` draws from, float32.

    Temperature 0 is greedy; its log-probs are those at temperature 1 without top-p. Top-p keeps the
    most probable tokens until their mass reaches `top_p` (Holtzman et al. 2020, arXiv 1904.09751).

    Args:
        logits: [..., V], banned ids at -inf already (`VLMFamily.logits`).
        keep: [...] ids that stay in the nucleus come what may. Weights move between sampling and
            learning; a sampled token that has left the nucleus keeps a finite log-prob this way.
    """
    logits = logits.float()
    if sampling.temperature > 0:
        if sampling.temperature != 1:
            logits = logits / sampling.temperature
        if sampling.top_p < 1:
            logits = logits.masked_fill(_outside_nucleus(logits.detach(), sampling.top_p, keep), -torch.inf)
    return logits.log_softmax(-1)


def token_logprobs(logits: Tensor, token_ids: Tensor, sampling: SamplingParams) -> Tensor:
    """Log-probs [...] (nats) of `token_ids` [...] under `apply_sampling(logits)` [..., V]."""
    keep = token_ids if sampling.top_p < 1 else None
    logprobs = apply_sampling(logits, sampling, keep=keep)
    return logprobs.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)


def draw(seeds: Sequence[Seed], steps: int, device: torch.device) -> Tensor:
    """[B, steps] numbers in [0, 1), float64: of each row those that follow from its seed alone.

    A row so draws the same whatever rows stand beside it. Rows without a seed draw from torch's own stream.
    """
    rows = [
        torch.rand(steps, dtype=torch.float64).numpy()
        if seed is None
        else np.random.default_rng(seed).random(steps)
        for seed in seeds
    ]
    return torch.from_numpy(np.stack(rows)).to(device)


def sample(logits: Tensor, sampling: SamplingParams, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """One token per row of `logits` [B, V]: (ids [B], log-probs [B] nats).

    Args:
        drawn: [B] numbers in [0, 1), float64, which decide; greedy sampling takes no notice.
    """
    logprobs = apply_sampling(logits, sampling)
    if sampling.temperature > 0:
        # By the inverse of the distribution function: one random number a row, where
        # torch.multinomial draws one for every token of the vocabulary.
        mass = logprobs.double().exp().cumsum(-1)
        ids = torch.searchsorted(mass, drawn[:, None] * mass[:, -1:], right=True).clamp_(
            max=mass.shape[-1] - 1
        )
    else:
        ids = logprobs.argmax(-1, keepdim=True)
    return ids.squeeze(-1), logprobs.gather(-1, ids).squeeze(-1)


def _outside_nucleus(logits: Tensor, top_p: float, keep: Tensor | None) -> Tensor:
    """[..., V] True for the tokens beyond the nucleus; the most probable one never is."""
    ordered, order = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    before[..., 0] = 0.0
    outside = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
    if keep is not None:
        outside.scatter_(-1, keep.unsqueeze(-1), False)
    return outside
