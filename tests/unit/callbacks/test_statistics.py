"""Intervals against published values and against what they promise."""

from itertools import product
from math import comb

import pytest

from rllib_vlm.callbacks.statistics import newcombe_interval, paired_newcombe_interval


def test_independent_interval_of_a_published_example():
    # Newcombe (1998), table II, case (a), method 10: 56/70 - 48/80.
    assert newcombe_interval(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_paired_interval_of_a_published_example():
    # Response before and after consolidation therapy (Cavo et al., 2012), as computed by the R package
    # contingencytables, Newcombe_square_and_add_CI_paired_2x2: -0.0621 (-0.1186 to -0.0046).
    assert paired_newcombe_interval(59, 6, 16, 80) == pytest.approx((-0.1186, -0.0046), abs=5e-5)


def test_exchanging_the_evaluations_turns_the_interval_round():
    low, high = paired_newcombe_interval(20, 30, 5, 45)
    assert paired_newcombe_interval(20, 5, 30, 45) == pytest.approx((-high, -low))


def test_agreement_narrows_the_interval():
    paired = paired_newcombe_interval(40, 20, 2, 38)
    independent = newcombe_interval(60, 100, 42, 100)
    assert paired[1] - paired[0] < 0.8 * (independent[1] - independent[0])


def test_uncorrelated_outcomes_give_the_independent_interval():
    assert paired_newcombe_interval(25, 25, 25, 25) == pytest.approx(newcombe_interval(50, 100, 50, 100))


@pytest.mark.parametrize("counts", [(0, 0, 0, 5), (5, 0, 0, 0), (0, 5, 0, 0), (0, 0, 5, 0)])
def test_extremes_stay_within_bounds(counts):
    low, high = paired_newcombe_interval(*counts)
    assert -1.0 <= low <= (counts[1] - counts[2]) / 5 <= high <= 1.0


def test_paired_interval_covers_as_often_as_it_says():
    """Summed over every table of 20 pairs, weighted by its probability."""
    n, odds, covered = 20, (0.35, 0.3, 0.1, 0.25), 0.0
    for a, b, c in product(range(n + 1), repeat=3):
        d = n - a - b - c
        if d < 0:
            continue
        low, high = paired_newcombe_interval(a, b, c, d)
        if low <= odds[1] - odds[2] <= high:
            ways = comb(n, a) * comb(n - a, b) * comb(n - a - b, c)
            covered += ways * odds[0] ** a * odds[1] ** b * odds[2] ** c * odds[3] ** d
    assert 0.93 < covered < 0.985
