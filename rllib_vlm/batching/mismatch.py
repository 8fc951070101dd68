"""What to do about samplers that compute other probabilities than learners do (another engine, another precision)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rllib_vlm.batching.rows import Row
from rllib_vlm.errors import ConfigErrors, did_you_mean

Correction = Literal["none", "truncate", "mask"]
Level = Literal["token", "sequence"]
_BOUND = 20.0  # of log-ratios: e^20 is beyond anything that could teach


@dataclass(frozen=True, slots=True, kw_only=True)
class MismatchSettings:
    """`training.mismatch`. With w the learner's probability, at the weights an update starts from, over the sampler's::

        none        the loss is taken as if both were the same
        truncate    the loss of a token is multiplied by min(w, cap)        (truncated importance sampling)
        mask        tokens with w outside [1 / cap, cap] are left out

    At level "sequence", w is the product over all tokens of the row that count.

    Source: Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (2025), for "truncate";
    "mask" is the rejection of verl's rollout correction and of IcePop (2025).
    """

    correction: Correction = "none"
    level: Level = "token"
    cap: float = 2.0

    def __post_init__(self) -> None:
        errors = [
            f"{name} is {value!r}.{did_you_mean(str(value), known)} Known: {', '.join(known)}"
            for name, value, known in (
                ("correction", self.correction, get_args(Correction)),
                ("level", self.level, get_args(Level)),
            )
            if value not in known
        ]
        if isinstance(self.cap, bool) or not isinstance(self.cap, int | float) or not self.cap > 1.0:
            errors.append(f"cap is {self.cap!r}; it must be a number above 1, e.g. 2")
        if errors:
            raise ConfigErrors("mismatch", errors)


@dataclass(slots=True, kw_only=True)
class Gap:
    """How far sampler and learner are apart, over the tokens that count."""

    tokens: int = 0
    kl: float = 0.0  # sum of k3, nats, of the sampler against the learner
    distance: float = 0.0  # sum of |log w|
    largest: float = 0.0  # |log w|
    corrected: int = 0  # tokens whose weight was cut, or that were left out

    def metrics(self) -> dict[str, float]:
        """Means over tokens, and the largest."""
        tokens = max(1, self.tokens)
        return {
            "sampler_gap": self.distance / tokens,
            "mismatch_kl": self.kl / tokens,
            "mismatch_log_ratio_max": self.largest,
            "mismatch_corrected": self.corrected / tokens,
        }


def relearn(
    rows: Sequence[Row], logprobs: Sequence[NDArray[np.float32]], settings: MismatchSettings
) -> tuple[list[Row], Gap]:
    """The rows with the learner's own log-probs as `old_logprobs`, corrected for who really sampled.

    Args:
        rows: with the sampler's log-probs.
        logprobs: [L] nats per row, the learner's at the weights the update starts from, 0 off the sampled tokens.
        settings: how to correct.
    """
    found, gap = [], Gap()
    for row, own in zip(rows, logprobs, strict=True):
        counts = row.loss_mask
        d = np.where(counts, own.astype(np.float64) - row.old_logprobs, 0.0).clip(-_BOUND, _BOUND)
        gap.tokens += int(counts.sum())
        gap.kl += float((np.exp(d) - 1.0 - d)[counts].sum())
        gap.distance += float(np.abs(d[counts]).sum())
        gap.largest = max(gap.largest, float(np.abs(d).max(initial=0.0)))
        if settings.level == "sequence":
            d = np.where(counts, np.clip(d.sum(), -_BOUND, _BOUND), 0.0)
        w = np.exp(d)
        weights, mask = row.loss_weights, counts
        if settings.correction == "truncate":
            gap.corrected += int((counts & (w > settings.cap)).sum())
            weights = np.where(counts, weights * np.minimum(w, settings.cap), weights).astype(np.float32)
        elif settings.correction == "mask":
            mask = counts & (w <= settings.cap) & (w >= 1.0 / settings.cap)
            gap.corrected += int(counts.sum() - mask.sum())
        found.append(replace(row, old_logprobs=own.astype(np.float32), loss_weights=weights, loss_mask=mask))
    return found, gap
