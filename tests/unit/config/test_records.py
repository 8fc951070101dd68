"""What a trial tells of itself is in its folder at once, and once."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyarrow.fs import LocalFileSystem

from rllib_vlm.config.records import NOTES, KeepFiles, Records


class Trial(SimpleNamespace):
    """As much of Tune's trial as is read."""

    __hash__ = object.__hash__


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    staging = tmp_path / "staging"
    (staging / "trial").mkdir(parents=True)
    (tmp_path / "run" / "trial").mkdir(parents=True)
    storage = SimpleNamespace(
        storage_filesystem=LocalFileSystem(),
        trial_fs_path=str(tmp_path / "run" / "trial"),
        experiment_driver_staging_path=str(staging),
    )
    return Trial(
        storage=storage,
        config={"lr": 1e-3},
        local_path=str(staging / "trial"),
        init_local_path=lambda: None,
        latest_checkpoint_result=None,
    )


def iterations(folder: Path) -> list[int]:
    return [
        json.loads(line)["training_iteration"] for line in (folder / "result.json").read_text().splitlines()
    ]


def test_every_iteration_is_there_at_once_and_stands_there_once(trial, tmp_path: Path):
    folder = tmp_path / "run" / "trial"
    records = Records()
    records.log_trial_start(trial)
    for n in (1, 2, 3):
        records.log_trial_result(n, trial, {"training_iteration": n, "loss": float("nan")})
        assert iterations(folder) == list(range(1, n + 1))
    with (folder / "result.json").open("a") as file:
        file.write('{"training_iteration": 4, "lo')  # killed in the middle of it

    def went_on_from(iteration: int, place: Path) -> list[int]:
        trial.latest_checkpoint_result = SimpleNamespace(
            checkpoint=SimpleNamespace(path=str(place)), metrics={"training_iteration": iteration}
        )
        Records().log_trial_start(trial)
        return iterations(folder)

    assert went_on_from(2, folder / "checkpoint_000001") == [1, 2]
    records.log_trial_result(3, trial, {"training_iteration": 3})
    assert iterations(folder) == [1, 2, 3]
    assert went_on_from(1, tmp_path / "run" / "another_trial" / "checkpoint_000000") == [1, 2, 3]
    trial.latest_checkpoint_result = None
    Records().log_trial_start(trial)
    assert iterations(folder) == [], "it begins anew"
    records.log_trial_end(trial)


def test_notes_are_copied_whole_when_they_change(trial, tmp_path: Path):
    keep, notes = KeepFiles(), tmp_path / "staging" / "experiment_state-2026.json"
    keep.on_trial_result(1, [trial], trial, {})
    assert not (tmp_path / "run" / NOTES).exists()
    notes.write_text("{}")
    keep.on_trial_result(1, [trial], trial, {})
    assert (tmp_path / "run" / NOTES).read_text() == "{}"
    (tmp_path / "run" / NOTES).unlink()
    keep.on_trial_result(2, [trial], trial, {})
    assert not (tmp_path / "run" / NOTES).exists(), "they are as they were"
