"""Results of benchmarks: the files, the page and the sums. Nothing is measured, Ray is not started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import _results, end_to_end, profile
from benchmarks.__main__ import main, names
from benchmarks._arguments import numbers
from benchmarks._targets import TARGETS, Target
from rllib_vlm.errors import RLlibVLMError, UnknownNameError


def result(name, value, **details):
    return {"name": name, "value": value, "unit": "times", "details": details}


def test_the_page_says_what_the_files_say():
    page = _results.PAGE.read_text(encoding="utf-8")
    assert _results.with_table(page, _results.kept()) == page
    assert _results.PICTURE.is_file()


def test_kept_files_are_of_benchmarks_and_name_no_host_or_path():
    for name, record in _results.kept().items():
        assert name in names()
        assert record["machine"].keys() == {"cpu", "cores"}
        assert "/" not in json.dumps(record["machine"])


def test_every_target_is_of_a_benchmark():
    assert set(TARGETS) <= set(names())


def test_a_result_is_kept_with_commit_date_and_machine(tmp_path):
    path = _results.keep(result("learner", 0.95), tmp_path)
    (record,) = _results.kept(tmp_path).values()
    assert path.name == "learner.json"
    assert record["value"] == 0.95
    assert record["commit"] == _results.commit()
    assert len(record["date"]) == len("2026-11-28")
    assert record["machine"]["cores"] >= 1


def test_a_file_that_is_no_result_is_named(tmp_path):
    (tmp_path / "learner.json").write_text('{"name": "learner"}')
    with pytest.raises(RLlibVLMError, match=r"learner\.json has no value, unit, commit"):
        _results.kept(tmp_path)


def test_the_table_tells_of_targets_held_missed_and_not_measured():
    more = {"commit": "abc1234", "date": "2026-11-28"}
    kept = {
        "learner": {**result("learner", 0.95), **more},
        "weight_sync": {**result("weight_sync", 3.0, **{"share of an iteration": 0.01}), **more},
        "trl": {**result("trl", 2.5), **more},  # one case of it
    }
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in _results.table(kept).splitlines()]
    assert ["`learner`", TARGETS["learner"][0].what, "at least 0.9", "0.95", "abc1234, 2026-11-28"] in rows
    assert [
        "`weight_sync`",
        TARGETS["weight_sync"][0].what,
        "at most 2",
        "3 (missed)",
        "abc1234, 2026-11-28",
    ] in rows
    assert ["`packing`", TARGETS["packing"][0].what, "at least 1.8", "not yet", ""] in rows
    shown = {row[1]: row[3] for row in rows if row[0] == "`trl`"}
    assert list(shown.values()) == ["2.5", "not yet", "not yet", "not yet"]


def test_bounds_go_both_ways():
    least, most = (Target(what="", bound=2.0, way=way) for way in ("least", "most"))
    assert [least.holds(f) for f in (1.9, 2.0, 2.1)] == [False, True, True]
    assert [most.holds(f) for f in (1.9, 2.0, 2.1)] == [True, True, False]


def test_a_page_without_a_place_for_the_table_is_refused():
    with pytest.raises(RLlibVLMError, match="no lines"):
        _results.with_table("# Performance\n", {})


def test_the_picture_is_drawn_with_and_without_results(tmp_path):
    more = {"commit": "abc1234", "date": "2026-11-28"}
    kept = {
        "learner": {**result("learner", 0.85), **more},
        "profile": {**result("profile", 3.0, phases={"generating": 2.0, "learning": 1.0}), **more},
    }
    for name, results in {"empty.png": {}, "full.png": kept}.items():
        _results.draw(results, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "empty.png").read_bytes() != (tmp_path / "full.png").read_bytes()


def test_arguments_are_numbers_by_name(capsys):
    assert numbers("packing", ["rounds=7"], {"rounds": 5, "episodes": 128}) == {"rounds": 7, "episodes": 128}
    with pytest.raises(UnknownNameError, match="rounds"):
        numbers("packing", ["round=7"], {"rounds": 5})
    for wrong in ("rounds=0", "rounds=many", "rounds"):
        with pytest.raises(RLlibVLMError, match="whole number"):
            numbers("packing", [wrong], {"rounds": 5})
    assert main(["trl", "pictures"]) == 2
    assert "vision" in capsys.readouterr().err
    assert main(["expert", "planner"]) == 2
    assert "expert takes no arguments" in capsys.readouterr().err
    assert main(["plot", "rollout"]) == 2
    assert "plot takes no arguments" in capsys.readouterr().err
    assert main(["seeing", "a", "b"]) == 2
    assert "seeing takes checkpoint" in capsys.readouterr().err
    assert main(["packing", "--json", "rounds=x"]) == 2, (
        "options may stand before a benchmark's own arguments"
    )
    assert "rounds=x" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([])
    said = capsys.readouterr().err
    assert all(name in said for name in names())


# The profile.


def record(iteration_s=20.0, **runners):
    runners = {"time_generate_s": 6.0, "time_simulate_s": 3.0, "time_render_s": 0.5, **runners}
    return {
        "phase": "rl",
        "timers": {"sample": 10.0, "learn": 8.0, "credit": 0.25, "sync": 0.5},
        "env_runners": runners,
        "learners": {"default_policy": {"prepare_s": 1.0}},
        "time_this_iter_s": iteration_s,
    }


def test_phases_are_all_of_an_iteration():
    found = profile.phases(record())
    assert found == {
        "generating": 6.0,
        "simulating": 3.0,
        "rendering prompts": 0.5,
        "sampling, the rest": 0.5,
        "credit": 0.25,
        "rows and packing": 1.0,
        "learning": 7.0,
        "weights to engines": 0.5,
        "the rest": 1.25,
    }
    busy = profile.phases(record(time_simulate_s=43.5))  # 50 s of work in 10 s: simulators side by side
    assert busy["simulating"] == pytest.approx(8.7)
    assert sum(busy.values()) == pytest.approx(20.0)


def test_a_profile_is_of_updates_after_the_first_and_without_evaluation():
    warm_start = {"phase": "warm_start", "timers": {"sample": 1.0, "learn": 1.0}, "time_this_iter_s": 2.0}
    records = [
        warm_start,
        record(90.0),
        record(20.0),
        {**record(70.0), "evaluation": {}},
        record(21.0),
        record(22.0),
    ]
    found = profile.summary(records)
    assert found["details"]["iterations"] == 3
    assert found["value"] == 21.0
    with pytest.raises(RLlibVLMError, match="two or more"):
        profile.summary(records[:2])


# From one commit to another.


def evaluated(seconds, success=None, evaluating=0.0):
    found = {"time_this_iter_s": seconds + evaluating}
    return (
        found if success is None else {**found, "evaluation": {"success_rate": success, "wall_s": evaluating}}
    )


def run_folder(path, records):
    path.mkdir()
    (path / "result.json").write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def test_the_clock_of_a_run_stands_while_it_evaluates():
    records = [evaluated(10.0), evaluated(10.0, 0.4, 50.0), evaluated(10.0), evaluated(10.0, 0.61, 50.0)]
    assert end_to_end.curve(records) == [(20.0, 0.4), (40.0, 0.61)]


def test_two_runs_are_compared_by_when_they_first_reach_the_goal(tmp_path):
    before = run_folder(tmp_path / "before", [evaluated(100.0, s, 30.0) for s in (0.3, 0.5, 0.62, 0.58)])
    after = run_folder(tmp_path / "after", [evaluated(60.0, s, 30.0) for s in (0.5, 0.65)])
    found = end_to_end.run(before, after)
    assert found["value"] == 2.5
    assert found["details"]["seconds, before"] == 300.0
    assert found["details"]["seconds, after"] == 120.0
    assert found["details"]["highest success, before"] == 0.62


def test_both_trees_get_the_settings_and_stop_at_the_goal(tmp_path, monkeypatch):
    trees = [str(tmp_path / side) for side in ("before", "after")]
    for tree in trees:
        example = Path(tree) / "tuned_examples" / "spoc.yaml"
        example.parent.mkdir(parents=True)
        example.touch()
    asked = []

    def train(tree, settings, stop):
        asked.append((tree.name, settings, stop))
        seconds = 100.0 if tree.name == "before" else 50.0
        return Path(run_folder(tmp_path / f"run_{tree.name}", [evaluated(seconds, 0.7)]))

    monkeypatch.setattr(end_to_end, "_train", train)
    setting = "evaluation.evaluation_config.temperature=1.0"
    found = end_to_end.run(*trees, setting, "every=4", "goal=55")
    assert found["value"] == 2.0 and found["details"]["settings"] == setting
    wanted = [setting, "debugging.seed=0", "evaluation.evaluation_interval=4"]
    assert asked == [(side, wanted, "evaluation/success_rate=0.55") for side in ("before", "after")]
    with pytest.raises(RLlibVLMError, match="a run that is read has the settings it has"):
        end_to_end.run(run_folder(tmp_path / "read", []), trees[1], setting)
    with pytest.raises(RLlibVLMError, match="debugging.seed is this benchmark's own"):
        end_to_end.run(*trees, "debugging.seed=7")
    with pytest.raises(RLlibVLMError, match="at most 100"):
        end_to_end.run(*trees, "goal=101")
    before = len(asked)
    with pytest.raises(RLlibVLMError, match="nowhere"):
        end_to_end.run(trees[0], str(tmp_path / "nowhere"))
    assert len(asked) == before, "nothing was trained for it"


def test_a_run_that_never_reached_the_goal_is_told_of(tmp_path):
    short = run_folder(tmp_path / "short", [evaluated(100.0, 0.55)])
    reached = run_folder(tmp_path / "reached", [evaluated(60.0, 0.65)])
    with pytest.raises(RLlibVLMError, match=r"'after' never reached 60% .*at most 55\.0%"):
        end_to_end.run(reached, short)
    bound = end_to_end.run(short, reached)
    assert bound["value"] == pytest.approx(1.667) and bound["details"]["value is"] == "at least"
    assert bound["details"]["highest success, before"] == 0.55
    assert "value is" not in end_to_end.run(short, reached, "goal=50")["details"]
    with pytest.raises(RLlibVLMError, match="1 places"):
        end_to_end.run(short)
