from types import SimpleNamespace

import cloudpickle
import pytest

from rllib_vlm.config.progress import MetricStopper, ProgressLines
from rllib_vlm.config.records import KeepFiles


def result(iteration: int, **values) -> dict:
    return {"training_iteration": iteration, "time_total_s": 61.0 * iteration, **values}


def test_one_line_per_result_under_a_header_of_what_is_there(capsys: pytest.CaptureFixture[str]):
    lines, trial = ProgressLines(), SimpleNamespace(trial_id="t")
    lines.on_trial_result(0, [], trial, result(1, env_runners={"success_rate": 0.25}))
    lines.on_trial_result(0, [], trial, result(2, env_runners={"success_rate": 0.5}))
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["iter", "time", "success"]
    assert first.split() == ["1", "1:01", "0.250"]
    assert second.split() == ["2", "2:02", "0.500"]
    assert len(header) == len(first) == len(second)


def test_a_metric_that_appears_later_gets_a_column_and_a_gap_where_it_is_absent(
    capsys: pytest.CaptureFixture[str],
):
    lines, trial = ProgressLines(several_trials=True), SimpleNamespace(trial_id="ab_1")
    lines.on_trial_result(0, [], trial, result(1))
    lines.on_trial_result(0, [], trial, result(2, evaluation={"success_rate": 0.5}))
    lines.on_trial_result(0, [], trial, result(3))
    out = capsys.readouterr().out.splitlines()
    assert out[2].split() == ["trial", "iter", "time", "held-out"]
    assert out[3].split() == ["ab_1", "2", "2:02", "0.500"]
    assert out[4].split() == ["ab_1", "3", "3:03", "-"]


def test_the_reporter_survives_tunes_pickling():
    lines = ProgressLines(several_trials=True)
    lines.on_trial_result(0, [], SimpleNamespace(trial_id="t"), result(1))
    assert cloudpickle.loads(cloudpickle.dumps(lines)).several_trials


def test_any_threshold_ends_a_trial_and_nested_metrics_go_by_path():
    stop = MetricStopper({"training_iteration": 3, "env_runners/success_rate": 0.5})
    assert not stop("t", result(1, env_runners={"success_rate": 0.4}))
    assert stop("t", result(2, env_runners={"success_rate": 0.5}))
    assert stop("t", result(3))
    assert not stop.stop_all()


def test_a_misspelt_metric_is_told_once(capsys: pytest.CaptureFixture[str]):
    stop = MetricStopper({"env_runners/succes_rate": 0.5})
    for i in (1, 2):
        assert not stop("t", result(i, env_runners={"success_rate": 0.9}))
    assert capsys.readouterr().out.count("Did you mean 'env_runners/success_rate'") == 1


def test_files_left_in_the_working_folder_join_the_trials_folder(tmp_path):
    working, staging, kept = tmp_path / "working", tmp_path / "staging", tmp_path / "kept"
    (working / "sub").mkdir(parents=True)
    kept.mkdir()
    staging.mkdir()
    (staging / "tracker.log").write_text("end")
    (working / "results.json").write_text("new")
    (working / "sub" / "image.txt").write_text("x")
    (kept / "own.txt").write_text("stays")
    storage = SimpleNamespace(
        trial_working_directory=str(working),
        trial_driver_staging_path=str(staging),
        trial_fs_path=str(kept),
    )
    KeepFiles().on_experiment_end([SimpleNamespace(storage=storage)])
    assert (kept / "results.json").read_text() == "new"
    assert (kept / "sub" / "image.txt").read_text() == "x"
    assert (kept / "tracker.log").read_text() == "end"
    assert (kept / "own.txt").read_text() == "stays"
