"""`results.json` and its intervals."""

import json

import pytest

from rllib_vlm.callbacks.report import PeakMemory, results, write_json
from rllib_vlm.callbacks.statistics import newcombe_interval


def record(successes: int, n: int) -> dict:
    return {
        "success_rate": successes / n, "num_successes": successes, "num_episodes": n,
        "interval_low": 0.1, "interval_high": 0.9,
    }  # fmt: skip


def test_newcombe_of_a_published_example():
    # Newcombe (1998), table II, case (a), method 10: 56/70 - 48/80.
    assert newcombe_interval(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_an_interval_without_a_difference_holds_zero():
    low, high = newcombe_interval(10, 20, 10, 20)
    assert low < 0 < high
    assert low == pytest.approx(-high)


def test_results_grow_with_the_run():
    assert results({}) == {}
    first = results({"warm_start_end": record(80, 200)})
    assert first["warm_start"]["success"] == 0.4
    assert "difference" not in first
    both = results({"warm_start_end": record(80, 200), "final": record(140, 200)})
    assert both["difference"]["value"] == pytest.approx(0.3)
    low, high = both["difference"]["interval"]
    assert 0 < low < 0.3 < high


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    write_json(path, {"b": 2})
    assert json.loads(path.read_text()) == {"b": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_peak_memory_counts_this_process():
    assert PeakMemory().peak_bytes > 10_000_000
