"""Keys and values of the tokens so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(slots=True)
class Cache:
    """Keys and values of every layer, [layers, B, 2 G, S, d] with the keys first, the first `used` of S filled."""

    pairs: Tensor
    used: int = 0

    @classmethod
    def empty(cls, language: Any, batch: int, size: int, like: Tensor) -> Cache:
        """For `batch` rows of up to `size` tokens, of the kind of `like`.

        Whoever masks slots before anything was written there fills them: 0 times NaN is NaN.
        """
        heads, width = language.config.num_key_value_heads, language.layers[0].self_attn.head_dim
        return cls(like.new_empty(len(language.layers), batch, 2 * heads, size, width))

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes behind `used`; returns all keys and values up to there. `used` moves after the last layer."""
        end, own, groups = self.used + k.shape[2], self.pairs[layer], k.shape[1]
        own[:, :groups, self.used : end] = k
        own[:, groups:, self.used : end] = v
        return own[:, :groups, :end], own[:, groups:, :end]

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch."""
        self.pairs = self.pairs[:, rows]
