"""`results.json` and the curve."""

import json
from pathlib import Path

import PIL.Image
import pytest
from tiny import tiny_config

from rllib_vlm.callbacks.curve import Curve
from rllib_vlm.callbacks.report import PeakMemory, Report, results, write_json


def record(successes: int, n: int) -> dict:
    return {
        "success_rate": successes / n, "num_successes": successes, "num_episodes": n,
        "interval_low": 0.1, "interval_high": 0.9,
    }  # fmt: skip


def test_results_grow_with_the_run():
    assert results({}) == {}
    first = results({"warm_start_end": record(80, 200)})
    assert first["warm_start"]["success"] == 0.4
    assert "difference" not in first
    both = results({"warm_start_end": record(80, 200), "final": record(140, 200)})
    assert both["difference"]["value"] == pytest.approx(0.3)
    low, high = both["difference"]["interval"]
    assert 0 < low < 0.3 < high
    assert both["difference"]["method"] == "Newcombe, independent"


def outcomes(*solved: int) -> dict:
    return {f"heldout/{i}": i in solved for i in range(20)}


def test_the_difference_is_paired_where_both_evaluations_played_the_same_tasks():
    before = record(8, 20) | {"outcomes": outcomes(*range(8))}
    after = record(14, 20) | {"outcomes": outcomes(*range(14))}
    paired = results({"warm_start_end": before, "final": after})["difference"]
    assert paired["method"] == "Newcombe, paired"
    other = after | {"outcomes": {f"heldout/{i + 1}": i < 14 for i in range(20)}}
    independent = results({"warm_start_end": before, "final": other})["difference"]
    assert independent["method"] == "Newcombe, independent"
    assert paired["value"] == independent["value"]
    widths = [high - low for low, high in (paired["interval"], independent["interval"])]
    assert widths[0] < widths[1]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("runners", [0, 2])
def test_a_run_writes_its_results_and_its_curve(build, runners):
    config = tiny_config("ppo").env_runners(num_env_runners=runners).callbacks(Report)
    config.warm_start(updates=1, episodes_per_update=4).training(total_updates=1)
    config.evaluation(evaluation_duration=6, evaluation_at=("warm_start_end", "final"))
    algorithm = build(config)
    trained = [algorithm.train() for _ in range(2)]
    state = algorithm.get_state()["run_state"]
    folder = Path(algorithm.logdir)
    written = json.loads((folder / "results.json").read_text())
    assert written["warm_start"]["episodes"] == written["final"]["episodes"] == 6
    assert written["difference"]["method"] == "Newcombe, paired"
    assert written["details"]["final"]["num_updates"] == 1
    assert written["peak_rss_gb"] > 0.1
    assert "outcomes" not in trained[-1]["evaluation"]  # Tune need not log every episode
    assert len(state["evaluations"]["warm_start_end"]["outcomes"]) == 6  # a resumed run still can pair
    with PIL.Image.open(folder / "success.png") as picture:
        picture.load()
        assert picture.format == "PNG"


def test_a_curve_can_be_drawn_of_nothing_and_of_everything(tmp_path):
    Curve().draw(tmp_path / "empty.png")
    curve = Curve()
    for minute in range(3):
        curve.add_training(minute, "imitation", 0.1 * minute)
    curve.add_training(3, "imitation", None)
    curve.add_evaluation(3, record(8, 20) | {"at": "warm_start_end"})
    curve.add_evaluation(4, {"at": "final"})
    curve.draw(tmp_path / "full.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.png", "full.png"]
    assert (tmp_path / "full.png").stat().st_size > (tmp_path / "empty.png").stat().st_size


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    write_json(path, {"b": 2})
    assert json.loads(path.read_text()) == {"b": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_peak_memory_counts_this_process():
    assert PeakMemory().peak_bytes > 10_000_000
