"""Whitening of advantages: mean 0 and standard deviation 1 over a batch, also one spread over learners."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Count, mean and sum of squared deviations of the masked entries seen so far.

    Parts add up, so learners that each hold a shard agree on the whole batch::

        total = sum(parts, Moments())            # exchanged with one all-gather of three numbers
        advantages = total.whiten(advantages, mask)

    Source of the addition: Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances" (1979).
    """

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0  # sum of (x - mean)^2

    @classmethod
    def of(cls, values: NDArray[np.floating], mask: NDArray[np.bool_]) -> Moments:
        """Moments of the entries of `values` where `mask` is true; both of one shape."""
        kept = np.asarray(values, np.float64)[mask]
        if not len(kept):
            return cls()
        mean = float(kept.mean())
        return cls(count=float(len(kept)), mean=mean, squares=float(((kept - mean) ** 2).sum()))

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        if not count:
            return Moments()
        shift = other.mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + shift * other.count / count,
            squares=self.squares + other.squares + shift**2 * self.count * other.count / count,
        )

    @property
    def std(self) -> float:
        """Population standard deviation; 0 of fewer than two entries."""
        return float(np.sqrt(self.squares / self.count)) if self.count > 1 else 0.0

    def whiten(
        self, values: NDArray[np.floating], mask: NDArray[np.bool_], *, epsilon: float = 1e-8
    ) -> NDArray[np.float32]:
        """(values - mean) / (std + epsilon) where `mask` is true, 0 elsewhere.

        Entries that are all equal (up to rounding) become 0, never rounding noise blown up.
        """
        out = np.zeros(np.shape(values), np.float32)
        if self.std > 1e-9 * max(1.0, abs(self.mean)):
            centred = np.asarray(values, np.float64)[mask] - self.mean
            out[mask] = (centred / (self.std + epsilon)).astype(np.float32)
        return out


def whiten(
    values: NDArray[np.floating], mask: NDArray[np.bool_], *, epsilon: float = 1e-8
) -> NDArray[np.float32]:
    """`values` whitened over the entries where `mask` is true, 0 elsewhere; any one shape."""
    return Moments.of(values, mask).whiten(values, mask, epsilon=epsilon)
