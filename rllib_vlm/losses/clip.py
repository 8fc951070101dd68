"""How far an importance ratio may go."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """The range of ratios, and the bound of the loss at negative advantages."""

    low: float = 0.2  # how far below 1 a ratio still counts in full
    high: float = 0.2  # how far above 1; larger than `low` is clip-higher
    dual: float | None = None  # see `ppo_clip`

    def __call__(self, ratio: Tensor) -> Tensor:
        """[B, L], cut to the range."""
        return ratio.clamp(1.0 - self.low, 1.0 + self.high)
