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


def iteration(number: int, *, success: float, imitates: bool, seconds: float = 30.0, **more) -> dict:
    learned = {"imitation_loss": 0.5} if imitates else {"policy_loss": 0.1}
    return {
        "training_iteration": number, "time_this_iter_s": seconds, "env_runners": {"success_rate": success},
        "learners": {"default_policy": learned}, **more,
    }  # fmt: skip


def test_a_curve_goes_on_from_records():
    curve = Curve()
    evaluated = record(8, 20) | {"at": "warm_start_end"}
    minutes = curve.add_records([
        iteration(1, success=1.0, imitates=True),
        iteration(2, success=0.9, imitates=True, evaluation=evaluated),
        {"training_iteration": 3, "time_this_iter_s": "torn", "evaluation": {"success_rate": None}},
        iteration(4, success=0.5, imitates=False, seconds=60.0),
    ])  # fmt: skip
    assert minutes == 2.0
    assert curve.training == {"imitation": [(0.5, 1.0), (1.0, 0.9)], "reinforcement learning": [(2.0, 0.5)]}
    assert curve.evaluations == [(1.0, 0.4, 0.1, 0.9, "warm_start_end")]


@pytest.mark.usefixtures("ray_cluster")
def test_the_curve_of_a_resumed_run_begins_where_the_run_began(build, tmp_path):
    """The records hold an iteration that came after the checkpoint, which is made again, and a torn line."""
    config = tiny_config("ppo").callbacks(Report).warm_start(updates=1, episodes_per_update=4)
    config.training(total_updates=2).evaluation(
        evaluation_duration=3, evaluation_at=("warm_start_end", "final")
    )
    first = build(config)
    lines = []
    for _ in range(3):
        lines.append(json.dumps(first.train(), default=str))
        if len(lines) == 2:
            first.save_to_path(str(tmp_path / "saved"))
    second = build(config.copy(copy_frozen=False))
    Path(second.logdir, "result.json").write_text("\n".join([*lines, lines[0][:99]]))
    second.restore_from_path(str(tmp_path / "saved"))
    while not second.train()["done"]:
        pass
    (before,), (after,) = ([c for c in a.callbacks if isinstance(c, Report)] for a in (first, second))
    assert [len(points) for points in after.curve.training.values()] == [1, 2]
    assert after.curve.training["imitation"][0][1] == before.curve.training["imitation"][0][1]
    assert [e[1:] for e in after.curve.evaluations] == [e[1:] for e in before.curve.evaluations]
    minutes = [minute for points in after.curve.training.values() for minute, _ in points]
    assert minutes == sorted(minutes)
    assert Path(second.logdir, "success.png").is_file()


def test_a_curve_can_be_drawn_of_nothing_and_of_everything(tmp_path):
    Curve().draw(tmp_path / "empty.png")
    curve = Curve()
    for minute in range(3):
        curve.add_training(minute, iteration(minute, success=0.1 * minute, imitates=True))
    curve.add_training(3, {})
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
