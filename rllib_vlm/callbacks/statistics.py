"""Intervals of what two evaluations differ by."""

from __future__ import annotations

import math

from rllib_vlm.env.summary import wilson_interval


def newcombe_interval(
    successes: int, n: int, successes_before: int, n_before: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Bounds of the difference of two success rates, the later one minus the earlier one.

    Source: R. G. Newcombe, "Interval estimation for the difference between independent proportions"
    (1998), method 10. Both evaluations play the same tasks, which makes them agree more than
    independent ones: the interval is then on the wide side.
    """
    rate = successes / n if n else 0.0
    before = successes_before / n_before if n_before else 0.0
    low, high = wilson_interval(successes, n, confidence=confidence)
    low_before, high_before = wilson_interval(successes_before, n_before, confidence=confidence)
    difference = rate - before
    return (
        difference - math.hypot(rate - low, high_before - before),
        difference + math.hypot(high - rate, before - low_before),
    )
