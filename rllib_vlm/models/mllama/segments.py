"""Packed rows, cut into their segments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Segments:
    """Where the tokens of each segment stand in rows [B, L]; one segment a line, left-aligned."""

    places: Tensor  # int64 [S, T] in the flattened rows; 0 at padding
    real: Tensor  # bool [S, T]

    @classmethod
    def of(cls, segment_ids: Tensor) -> Segments:
        """Of rows [B, L]; rows of nothing but padding are one segment, whose states hold anything."""
        if not bool((segment_ids > 0).any()):
            segment_ids = torch.ones_like(segment_ids)
        flat = segment_ids.flatten()
        row = torch.arange(len(segment_ids), device=flat.device).repeat_interleave(segment_ids.shape[1])
        tokens = flat.nonzero()[:, 0]
        _, counts = (row * (flat.max() + 1) + flat)[tokens].unique_consecutive(return_counts=True)
        real = torch.arange(int(counts.max()), device=flat.device) < counts[:, None]
        return cls(torch.zeros_like(real, dtype=torch.int64).masked_scatter_(real, tokens), real)

    def cut(self, values: Tensor) -> Tensor:
        """[S, T] of values [B, L]; padding holds anything."""
        return values.flatten()[self.places]

    def join(self, states: Tensor, like: Tensor) -> Tensor:
        """[B, L, D] of states [S, T, D], of the shape of `like`; 0 at padding."""
        whole = like.new_zeros(like.shape).flatten(0, 1)
        return whole.index_copy(0, self.places[self.real], states[self.real].to(like.dtype)).view_as(like)
