from __future__ import annotations

import pytest

from rllib_vlm.env.summary import EpisodeSummary, summarize, wilson_interval


def test_wilson_interval_against_published_values():
    # Newcombe (1998), table I: 81 of 263 and 0 of 20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def episode(success: bool, reward: float, **metrics: float) -> EpisodeSummary:
    return EpisodeSummary(
        task_seed=1, success=success, total_reward=reward, turns=4, actions=6, metrics=metrics
    )


def test_means_are_over_the_episodes_that_report_them():
    record = summarize([episode(True, 1.0, spl=0.5, sel=1.0), episode(False, 0.0, spl=0.0)])
    assert record["success_rate"] == 0.5
    assert record["num_successes"] == 1
    assert record["num_episodes"] == 2
    assert record["episode_return_mean"] == 0.5
    assert record["sim"] == {"spl": 0.25, "sel": 1.0}


def test_no_episodes_are_no_division_by_zero():
    assert summarize([])["num_episodes"] == 0
