"""Curricula: odds of starts by level."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_vlm.errors import UnknownNameError
from rllib_vlm.sims.tasks import CURRICULA, STARTS, curriculum, draw_start, short_to_full_fetch


@given(level=st.floats(-1.0, 2.0))
@settings(max_examples=50, deadline=None)
@pytest.mark.parametrize("name", sorted(CURRICULA))
def test_odds_are_odds(name: str, level: float) -> None:
    odds = curriculum(name)(level)
    assert set(odds) <= set(STARTS)
    assert sum(odds.values()) == pytest.approx(1.0)
    assert min(odds.values()) >= 0.0


def test_short_to_full_fetch_goes_from_near_to_anywhere() -> None:
    levels = np.linspace(0.0, 1.0, 21)
    anywhere = [short_to_full_fetch(v)["anywhere"] for v in levels]
    near = [short_to_full_fetch(v)["near"] for v in levels]
    assert near[0] == pytest.approx(0.8)
    assert anywhere[-1] == pytest.approx(1.0)
    assert anywhere == sorted(anywhere)
    assert near == sorted(near, reverse=True)


def test_starts_are_drawn_with_their_odds() -> None:
    rng = np.random.default_rng(0)
    drawn = Counter(draw_start({"near": 3.0, "anywhere": 1.0}, rng) for _ in range(2000))
    assert set(drawn) == {"near", "anywhere"}
    assert drawn["near"] / 2000 == pytest.approx(0.75, abs=0.04)


def test_unknown_curriculum() -> None:
    with pytest.raises(UnknownNameError, match="short_to_full_fetch"):
        curriculum("short_to_ful_fetch")
