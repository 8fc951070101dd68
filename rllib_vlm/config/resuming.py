"""Makes a run's folder ready to go on: from which checkpoint each trial does, and how long it may be now.

Tune takes notes of its trials now and then. A run that was killed may have checkpoints its notes know nothing of, and
notes of checkpoints that are gone. What lies on the disk decides; the notes are made to agree with it.
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune
from ray.air.constants import EXPR_RESULT_FILE
from ray.train._internal.session import _TrainingResult
from ray.tune.experiment.trial import Trial
from ray.tune.utils.serialization import TuneFunctionDecoder, TuneFunctionEncoder

from rllib_vlm.algorithms.description import DESCRIPTION
from rllib_vlm.algorithms.manifest import damage, in_short
from rllib_vlm.config.checkpoints import BestCheckpoints
from rllib_vlm.config.overrides import parse_overrides, parse_stop
from rllib_vlm.config.progress import MetricStopper
from rllib_vlm.config.records import NOTES, numbered
from rllib_vlm.errors import CheckpointError, ConfigErrors, RLlibVLMError
from rllib_vlm.files import write_text

logger = logging.getLogger(__name__)

_STATES = "experiment_state-*.json"
# What may be another than it was: sections' keywords, and the attributes of the config they become.
_LENGTHS: dict[tuple[Any, Any], str] = {("training", key): key for key in ("total_updates", "time_budget_s")}


# Who learns: checkpoints go on with any of it.
_LEARNERS: dict[tuple[Any, Any], str] = {
    ("learners", "num_learners"): "num_learners",
    ("learners", "engine"): "learner_engine",
    ("learners", "zero_stage"): "zero_stage",
    ("learners", "offload_optimizer"): "offload_optimizer",
}


@dataclass(frozen=True, slots=True)
class Changes:
    """How long a resumed run may be now, and who learns, where that is not as it was."""

    stop: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    learners: Mapping[str, Any] = field(default_factory=dict)


def changes_of(stop: Sequence[str], overrides: Sequence[str]) -> Changes:
    """What `--stop` and `--set` may say of a run that is resumed.

    Raises:
        ConfigErrors: anything else is to be changed.
    """
    errors: list[str] = []
    stops = parse_stop(stop, errors)
    wishes = parse_overrides(overrides, errors)
    config: dict[str, Any] = {}
    learners: dict[str, Any] = {}
    for section, values in dict(wishes.data.get("config", {})).items():
        for key, value in values.items() if isinstance(values, dict) else ((None, None),):
            if (section, key) in _LENGTHS and isinstance(value, int | float | None):
                config[_LENGTHS[section, key]] = value
            elif (section, key) in _LEARNERS and isinstance(value, int | str):
                learners[_LEARNERS[section, key]] = value
            else:
                errors.append(f"--set {section}.{key}: a resumed run keeps its settings; {_WHAT_CHANGES}")
    errors += [
        f"--set {key}: a resumed run keeps its {key}; {_WHAT_CHANGES}"
        for key in wishes.data
        if key != "config"
    ]
    if errors:
        raise ConfigErrors("--resume", errors)
    return Changes(stops, config, learners)


_WHAT_CHANGES = (
    "--stop, --set training.total_updates and --set training.time_budget_s say how long it may be now, "
    "and --set learners.num_learners, engine, zero_stage and offload_optimizer who learns"
)


def make_ready(folder: Path, *, changes: Changes, manifests: bool) -> list[str]:
    """Has Tune's notes in `folder` say what is on the disk.

    Args:
        folder: of a run on this machine; its algorithm must be registered.
        changes: how long it may be now, and who learns.
        manifests: its checkpoints say of themselves whether they are whole.

    Returns:
        What a user should know, one sentence each.

    Raises:
        CheckpointError: a trial had checkpoints, and none of them is whole.
        RLlibVLMError: the notes are torn, or no trial is to go on.
    """
    file, state = _notes(folder)
    stopper = TuneFunctionDecoder(allow_cloudpickle=True).decode(
        json.dumps(state["runner_data"].get("_stopper"))
    )
    before, now = _lengthen(stopper, changes.stop)
    if changes.stop:
        stopper = now if before is None else stopper
        state["runner_data"]["_stopper"] = json.loads(json.dumps(stopper, cls=TuneFunctionEncoder))
    told: list[str] = []
    ended: list[str] = []
    trials = []
    going_on = 0
    for entry in state["trial_data"]:
        trial = Trial.from_json_state(entry[0])
        trial.restore_run_metadata(entry[1])
        _move(trial, folder)
        if trial.status == Trial.TERMINATED and _is_longer(trial, before, now, changes.config):
            trial.set_status(Trial.PENDING)
        if trial.status == Trial.TERMINATED:
            ended += _ends(trial, now, changes.config)
        else:
            going_on += 1
            # What Tune makes the trial's settings of anew, where some of them are no JSON, is a copy of its own.
            for config in (trial.config, vars(trial)["_Trial__unresolved_config"]):
                config.update({**changes.config, **changes.learners})
            if changes.learners:
                trial.create_placement_group_factory()
            if manifests:
                told += _adopt(trial, folder / trial.storage.trial_dir_name)
        trial.invalidate_json_state()
        trials.append(trial.get_json_state())
    if not going_on:
        raise RLlibVLMError(
            f"{folder}: every trial of this run is finished ({', '.join(dict.fromkeys(ended))}); to make it longer: "
            f"{_WHAT_CHANGES}"
        )
    write_text(file, json.dumps({**state, "trial_data": trials}))
    return told


def _notes(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file Tune will read, and the newest notes that are whole."""
    files = sorted(folder.glob(_STATES), reverse=True)
    for file in [*files[:1], folder / NOTES, *files[1:]]:
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
            if state["trial_data"] and isinstance(state["runner_data"], dict):
                return (files or [folder / _STATES.replace("*", "0000")])[0], state
        except (OSError, ValueError, KeyError, TypeError):
            continue
    raise RLlibVLMError(f"{folder}: Tune's notes of this run are torn or gone, and it cannot be resumed")


def _lengthen(stopper: Any, stop: Mapping[str, float]) -> tuple[MetricStopper | None, MetricStopper]:
    """The stop conditions as they were and as they are now; those within `stopper` are changed."""
    for part in (stopper, *getattr(stopper, "_stoppers", ())):
        if isinstance(part, MetricStopper):
            before = MetricStopper(part.thresholds)
            part.thresholds.update(stop)
            return before, part
    return None, MetricStopper(dict(stop))


def _is_longer(
    trial: Trial, before: MetricStopper | None, now: MetricStopper, config: Mapping[str, Any]
) -> bool:
    """Whether a trial that ended at its planned length has some of it to go now; a scheduler's verdict stands."""
    result = trial.last_result or {}
    finished = result.get("phase") == "finished"
    if now(trial.trial_id, result) or not (
        finished or (before is not None and before(trial.trial_id, result))
    ):
        return False
    return not finished or any(
        value is None or value > (trial.config.get(key) or 0) for key, value in config.items()
    )


def _ends(trial: Trial, now: MetricStopper, config: Mapping[str, Any]) -> Iterator[str]:
    """The limits at which a trial stands, as they are now."""
    result = trial.last_result or {}
    reached = [f"stop {name}={limit:g}" for name, limit in now.reached(result).items()]
    if result.get("phase") == "finished":
        planned = {key: {**trial.config, **config}.get(key) for key in _LENGTHS.values()}
        reached += [f"training.{key}={value:g}" for key, value in planned.items() if value is not None]
    yield from reached or ["a scheduler ended it"]


def _move(trial: Trial, folder: Path) -> None:
    """A run's folder may have been moved since."""
    storage = copy.copy(trial.storage)
    storage.storage_fs_path, storage.experiment_dir_name = folder.parent.as_posix(), folder.name
    trial.set_storage(storage)


def _adopt(trial: Trial, folder: Path) -> list[str]:
    """Has a trial know the whole checkpoints in its folder, and keep of them as many as it may.

    Raises:
        CheckpointError: it had some, and none is whole.
    """
    for torn in folder.glob(".checkpoint_*.tmp"):
        shutil.rmtree(torn, ignore_errors=True)
    manager = trial.run_metadata.checkpoint_manager
    noted = {Path(r.checkpoint.path).name: r for r in manager.best_checkpoint_results}
    places = sorted(place for place in folder.glob("checkpoint_*") if place.is_dir())
    problems = {place: damage(place) for place in places}
    whole = [place for place in places if not problems[place]]
    damaged = [f"{place} is damaged: {in_short(found)}" for place, found in problems.items() if found]
    if not whole and (damaged or manager.latest_checkpoint_result is not None):
        raise CheckpointError(
            "; ".join(damaged or [f"the checkpoints of {folder} are gone"]) + ". No other is whole."
        )
    adopted = BestCheckpoints(manager.checkpoint_config)
    lines = dict(numbered(folder / EXPR_RESULT_FILE)) if (folder / EXPR_RESULT_FILE).is_file() else {}
    filesystem = trial.storage.storage_filesystem
    for place in whole:
        result = noted.get(place.name) or _TrainingResult(
            checkpoint=tune.Checkpoint(path=str(place), filesystem=filesystem), metrics=_metrics(place, lines)
        )
        adopted.register_checkpoint(result)  # deletes what is not to be kept
    trial.run_metadata.checkpoint_manager = adopted
    trial.run_metadata.invalidate_cache()
    if places:
        trial.storage.current_checkpoint_index = int(places[-1].name.rpartition("_")[2])
    return [f"{sentence}; {folder.name} goes on from {whole[-1].name}" for sentence in damaged]


def _metrics(checkpoint: Path, lines: Mapping[int, str]) -> dict[str, Any]:
    """The result that a checkpoint was made after."""
    iteration = json.loads((checkpoint / DESCRIPTION).read_text(encoding="utf-8"))["training_iteration"]
    result: dict[str, Any] = json.loads(lines.get(iteration, "{}"))
    result.pop("config", None)
    return {**result, "training_iteration": iteration}
