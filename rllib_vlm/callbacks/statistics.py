"""Intervals of what two evaluations differ by."""

from __future__ import annotations

import math

from rllib_vlm.env.summary import wilson_interval


def newcombe_interval(
    successes: int, n: int, successes_before: int, n_before: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Bounds of the difference of two success rates of independent tasks, the later one minus the earlier one.

    Source: R. G. Newcombe, "Interval estimation for the difference between independent proportions:
    comparison of eleven methods", Statistics in Medicine 17 (1998) 873-890, method 10.
    """
    return _square_and_add(successes, n, successes_before, n_before, 0.0, confidence)


def paired_newcombe_interval(
    both: int, only_after: int, only_before: int, neither: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Bounds of the difference of two success rates on the same tasks, the later one minus the earlier one.

    With tasks counted by which evaluation solved them: `newcombe_interval`'s bounds, and a term for
    the correlation phi of the two outcomes. A positive phi shrinks by half a task first, and not below 0.

    Source: R. G. Newcombe, "Improved confidence intervals for the difference between binomial
    proportions based on paired data", Statistics in Medicine 17 (1998) 2635-2650, method 10.
    """
    n = both + only_after + only_before + neither
    after, before = both + only_after, both + only_before
    covariance = float(both * neither - only_after * only_before)
    if covariance > 0:
        covariance = max(0.0, covariance - n / 2)
    scale = math.sqrt(after * (n - after) * before * (n - before))
    return _square_and_add(after, n, before, n, covariance / scale if scale else 0.0, confidence)


def _square_and_add(
    successes: int, n: int, successes_before: int, n_before: int, phi: float, confidence: float
) -> tuple[float, float]:
    rate = successes / n if n else 0.0
    before = successes_before / n_before if n_before else 0.0
    low, high = wilson_interval(successes, n, confidence=confidence)
    low_before, high_before = wilson_interval(successes_before, n_before, confidence=confidence)
    difference = rate - before
    return (
        difference - _length(rate - low, high_before - before, phi),
        difference + _length(high - rate, before - low_before, phi),
    )


def _length(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(0.0, a * a - 2.0 * phi * a * b + b * b))
