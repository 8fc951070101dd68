"""What a run tells of itself, in its folder at once: killed outright, it has lost nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pyarrow.fs import LocalFileSystem
from ray.air.constants import EXPR_RESULT_FILE
from ray.tune import Callback
from ray.tune.logger import JsonLoggerCallback
from ray.tune.utils.util import SafeFallbackEncoder

from rllib_vlm.config.checkpoints import BestCheckpoints
from rllib_vlm.files import append_json_line, or_go_on, write_text

NOTES = ".notes.json"  # in a run's folder: Tune's notes of its trials, whole at any time


class Records(JsonLoggerCallback):
    """Tune's `result.json`, where trials lie on this machine written straight into their folders.

    Tune's own is written to Ray's temporary folder and copied now and then. A trial that goes on from a checkpoint
    writes what came after it anew, so that every iteration stands there once.
    """

    def log_trial_start(self, trial: Any) -> None:
        folder = trial_folder(trial)
        if folder is None:
            super().log_trial_start(trial)
            return
        trial.init_local_path()
        self.update_config(trial, trial.config)
        with or_go_on(EXPR_RESULT_FILE):
            folder.mkdir(parents=True, exist_ok=True)
            _cut(folder / EXPR_RESULT_FILE, trial.latest_checkpoint_result, folder)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        folder = trial_folder(trial)
        if folder is None:
            super().log_trial_result(iteration, trial, result)
            return
        with or_go_on(f"a line of {EXPR_RESULT_FILE}"):
            append_json_line(folder / EXPR_RESULT_FILE, result, encoder=SafeFallbackEncoder)


class KeepFiles(Callback):
    """Keeps the checkpoints that are to be kept, Tune's notes whole, and what was written last.

    What was written last is moved into the trials' folders, where all lie on this machine. Ray copies a trial's own
    files (`SyncConfig.sync_artifacts`) now and then and with every checkpoint, and loggers' files with its own; what
    is written after that, such as the end of an offline tracker's run, would stay in Ray's temporary folder. Comes
    after the loggers, which close theirs first. Ray also copies its notes of the run to where they stand; killed
    meanwhile, it leaves half of them. So there is another copy, which is whole.
    """

    def __init__(self) -> None:
        self._noted_ns = 0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        book = trial.run_metadata.checkpoint_manager
        if not isinstance(book, BestCheckpoints):
            trial.run_metadata.checkpoint_manager = BestCheckpoints.of(book)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        folder = trial_folder(trial)
        notes = sorted(Path(trial.storage.experiment_driver_staging_path).glob("experiment_state-*.json"))
        if folder is None or not notes or notes[-1].stat().st_mtime_ns == self._noted_ns:
            return
        with or_go_on("a copy of Tune's notes"):
            write_text(folder.parent / NOTES, notes[-1].read_text(encoding="utf-8"))
            self._noted_ns = notes[-1].stat().st_mtime_ns

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        for trial in trials:
            target = Path(trial.storage.trial_fs_path)
            for source in (trial.storage.trial_working_directory, trial.storage.trial_driver_staging_path):
                if target.is_dir() and Path(source).is_dir():
                    with or_go_on(f"a part of {target}"):
                        _copy_newer(Path(source), target)


def trial_folder(trial: Any) -> Path | None:
    """Where a trial's files are kept, if that is on this machine."""
    storage = trial.storage
    return Path(storage.trial_fs_path) if isinstance(storage.storage_filesystem, LocalFileSystem) else None


def _cut(file: Path, checkpoint: Any, folder: Path) -> None:
    """Leaves the lines up to the trial's own checkpoint: others are torn, or will be written again."""
    if not file.exists() or (checkpoint is not None and Path(checkpoint.checkpoint.path).parent != folder):
        return
    last = 0 if checkpoint is None else checkpoint.metrics.get("training_iteration", 0)
    kept = [line for n, line in numbered(file) if n <= last]
    write_text(file, "".join(f"{line}\n" for line in kept))


def numbered(file: Path) -> list[tuple[int, str]]:
    """The whole lines of a `result.json`, each with its iteration."""
    found = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append((int(json.loads(line)["training_iteration"]), line))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _copy_newer(source: Path, target: Path) -> None:
    for file in source.rglob("*"):
        copy = target / file.relative_to(source)
        if file.is_file() and not (copy.exists() and copy.stat().st_mtime >= file.stat().st_mtime):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, copy)
