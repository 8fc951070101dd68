"""Reading what a run has left, whatever state it left it in."""

import json
from pathlib import Path

import numpy as np
import pytest

from rllib_vlm.diagnosis import curves as c
from rllib_vlm.diagnosis.curves import in_words, levels, running, stretches
from rllib_vlm.diagnosis.records import EVENTS_FILE, find_trials, read_trial
from rllib_vlm.errors import RLlibVLMError


def test_a_run_and_its_trial_mean_the_same(write_trial):
    folder = write_trial()
    assert find_trials(folder) == find_trials(folder.parent) == [folder]
    other = write_trial(name="VLMPPO_x_00001")
    assert find_trials(folder.parent) == [folder, other]


def test_a_trial_that_never_reported_is_named_beside_those_that_did(write_trial):
    folder = write_trial()
    silent = folder.parent / "VLMPPO_x_00001"
    silent.mkdir()
    (silent / "params.json").write_text("{}")
    assert find_trials(folder.parent) == [folder, silent]
    with pytest.raises(RLlibVLMError, match=r"holds no result\.json"):
        read_trial(silent)


@pytest.mark.parametrize("path", ["nowhere", "file", "empty", "x" * 300, "with\0nul"])
def test_what_is_no_run_is_one_error(path: str, tmp_path: Path):
    (tmp_path / "file").write_text("{}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RLlibVLMError) as caught:
        find_trials(tmp_path / path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n\n", "[1, 2]\n", "nonsense", "\x00\x00\x00", "[" * 100_000])
def test_a_file_without_a_result_is_one_error(text: str, tmp_path: Path):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(RLlibVLMError, match="holds no result"):
        read_trial(tmp_path)


def test_a_torn_last_line_is_left_out_and_told(write_trial):
    trial = read_trial(write_trial(tail='{"num_updates": 31, "learners": {"default_pol'))
    assert len(trial.updates) == 30
    assert trial.notes == ["The last line of result.json is torn and left out."]


def test_bytes_of_no_text_and_lines_of_no_object_are_left_out_and_told(write_trial):
    folder = write_trial()
    file = folder / "result.json"
    file.write_bytes(b"\xff\xfe torn\n[]\n" + file.read_bytes())
    trial = read_trial(folder)
    assert len(trial.updates) == 30
    assert trial.notes == ["2 lines of result.json are no JSON objects and left out, line 1 first."]


def test_tokens_that_are_no_json_and_numbers_of_any_size_are_read(write_trial):
    folder = write_trial(
        lambda u: {c.KL: {5: np.nan, 6: np.inf, 7: -np.inf, 8: None, 9: 10**400}.get(u, 0.004)}
    )
    assert "NaN" in (folder / "result.json").read_text()
    kl = read_trial(folder).updates[c.KL]
    assert np.isnan(kl[[4, 7]]).all()
    assert list(kl[[5, 6, 8]]) == [np.inf, -np.inf, np.inf]


@pytest.mark.parametrize("strange", [None, "text", [1], {"x": {"y": 1}}, True])
def test_keys_of_another_type_are_as_good_as_missing(strange: object, write_trial):
    folder = write_trial(lambda u: {c.SUCCESS: strange})
    lines = [json.loads(line) for line in (folder / "result.json").read_text().splitlines()]
    lines.append(dict.fromkeys((*lines[0], "never_heard_of"), strange))
    lines.append({"learners": {"default_policy": strange}, "evaluation": {"success_rate": strange}})
    (folder / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    trial = read_trial(folder)
    assert len(trial.updates) == 30
    assert np.isnan(trial.updates[c.SUCCESS]).all()


def test_settings_come_from_the_results_or_from_the_file_beside_them(write_trial):
    assert read_trial(write_trial(name="a", settings={"lr": 1.0})).settings == {"lr": 1.0}
    folder = write_trial(name="b")
    (folder / "params.json").write_text('{"lr": 2.0}')
    assert read_trial(folder).settings == {"lr": 2.0}
    (folder / "params.json").write_text("torn")
    assert read_trial(folder).settings == {}


def test_evaluations_are_kept(write_trial):
    folder = write_trial(numbers=range(1, 3))
    record = {"num_updates": 2, "done": True, "evaluation": {"success_rate": 0.5, "at": "final"}}
    with (folder / "result.json").open("a") as file:
        file.write(json.dumps(record) + "\n")
    trial = read_trial(folder)
    assert [(e.at, e.update, e.success) for e in trial.evaluations] == [("final", 2, 0.5)]
    assert trial.finished


def test_the_guard_s_events_are_told(write_trial):
    events = [
        {"event": "alarm", "update": 12, "vital": "success", "value": 0.1, "usual": 0.5, "z": 8.0},
        {"event": "rollback", "update": 13, "to": 10, "why": ["success 0.1, usually 0.5"], "lr_scale": 0.5},
        {"event": "stopped", "update": 20, "why": [], "reason": "3 rollbacks made"},
        {"event": "of a later version"},
    ]
    told = [(e.kind, e.update, e.words) for e in read_trial(write_trial(events=events)).events]
    assert told == [
        ("alarm", 12, "alarm, success 0.1, usually 0.5"),
        ("rollback", 13, "went back to update 10: success 0.1, usually 0.5"),
        ("stopped", 20, "stopped (3 rollbacks made)"),
    ]


def test_the_events_file_is_the_guard_s():
    from rllib_vlm.guard import collapse_guard

    assert EVENTS_FILE == collapse_guard.EVENTS_FILE


def test_what_a_run_went_back_behind_is_known(write_trial):
    trial = read_trial(write_trial(numbers=[1, 2, 3, 4, 5, 3, 4]))
    assert list(trial.updates.kept) == [True, True, False, False, False, True, True]


def test_numbers_in_words():
    assert stretches([3, 1, 2, 7, 7]) == [(1, 3), (7, 7)]
    assert in_words([4]) == "update 4"
    assert in_words([1, 2, 3, 7]) == "updates 1 to 3, 7"
    assert in_words([1, 3, 5, 7, 9, 10]) == "updates 1, 3, 5, ..., 9 to 10"


def test_levels_bear_an_outlier_and_need_a_beginning_and_an_end():
    values = np.array([1.0, 1.0, 99.0, 1.0, 1.0, np.nan, 3.0, 3.0, np.inf, 3.0, 3.0])
    assert levels(values) == (1.0, 3.0)
    assert np.isnan(levels(values[:3])).all()
    assert np.nanmax(running(values)) == 3.0
    assert np.isnan(running(values)[:4]).all()
