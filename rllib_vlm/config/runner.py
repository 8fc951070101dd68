"""Experiment -> `tune.Tuner(...).fit()`, in a folder of its own, with Ray started and kept quiet."""

from __future__ import annotations

import logging
import re
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.error import TuneError

from rllib_vlm import registry
from rllib_vlm.config.experiment import Experiment
from rllib_vlm.config.progress import KeepFiles, MetricStopper, ProgressLines
from rllib_vlm.config.quiet import quiet
from rllib_vlm.config.sections import environment_class
from rllib_vlm.errors import RLlibVLMError

RESULTS_FILE = "results.json"


@dataclass(slots=True)
class Outcome:
    """What a run left: its folder, each trial's `results.json`, each failed trial's message."""

    folder: Path
    results_files: list[Path] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    interrupted: bool = False


def start_ray(*, address: str | None = None, num_cpus: int | None = None, dashboard: bool = True) -> None:
    """Joins the cluster at `address`, or starts Ray on this machine; does nothing where Ray is up already."""
    quiet()
    if ray.is_initialized():
        return
    if address is not None:
        ray.init(address=address, log_to_driver=True, logging_level=logging.ERROR)
        return
    ray.init(
        num_cpus=num_cpus,
        include_dashboard=dashboard,
        log_to_driver=True,
        logging_level=logging.ERROR,
        runtime_env={
            "env_vars": {"PYTHONWARNINGS": "ignore::DeprecationWarning", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            "worker_process_setup_hook": "rllib_vlm.config.quiet.quiet",
        },
    )


def run(
    experiment: Experiment,
    *,
    storage: str | Path = "results",
    name: str | None = None,
    resume: str | Path | None = None,
) -> Outcome:
    """Runs one experiment to its end; Ray must be up.

    Args:
        experiment: what to run.
        storage: the folder run folders are made in, or a cloud URI such as s3://bucket/path.
        name: the run folder's name; by default the experiment's name and the time.
        resume: a run folder to go on with, instead of starting a new one.

    Raises:
        RLlibVLMError: a trial asks for more than the machine has, or the folder to resume holds no run.
    """
    register(experiment)
    check_resources(experiment)
    folder, tuner = _new(experiment, storage, name) if resume is None else _restore(experiment, resume)
    outcome = Outcome(folder=Path(str(folder)))
    try:
        print(f"run folder: {folder}", flush=True)  # noqa: T201
        results = tuner.fit()
    except KeyboardInterrupt:
        outcome.interrupted = True
        return outcome
    except TuneError as error:
        raise RLlibVLMError(f"Tune gave up: {error}") from error
    outcome.failures = [_reason(error) for error in results.errors]
    if outcome.folder.is_dir():
        outcome.results_files = sorted(outcome.folder.glob(f"*/{RESULTS_FILE}"))
    # A trial that was stopped before its first result has no `done`; nor has one a time budget left no time for.
    missing = experiment.time_budget_s is not None
    outcome.interrupted = any(
        not r.metrics or not r.metrics.get("done", missing) for r in results if r.error is None
    )
    return outcome


def register(experiment: Experiment) -> None:
    """Makes our algorithms and the experiment's environment known to Ray by name."""
    for name in registry.names("algorithms"):
        if registry.TABLES["algorithms"].get(name, "").endswith(f":{experiment.algorithm.__name__}"):
            tune.register_trainable(name, experiment.algorithm)
    if experiment.env is not None:
        creator = environment_creator(experiment.env)
        if creator is not None:
            tune.register_env(experiment.env, creator)


def environment_creator(env: str) -> Callable[[Any], Any] | None:
    """A picklable function from an `env_config` to a new environment; None for an id Gymnasium makes itself."""
    import gymnasium as gym

    return None if env in gym.registry else partial(_make_environment, env)


def _make_environment(env: str, context: Any) -> Any:
    return environment_class(env)(**dict(context))


def check_resources(experiment: Experiment) -> None:
    """Refuses a trial no node can ever hold: Tune would wait for it without a word.

    Raises:
        RLlibVLMError: says what is asked for, what is there, and which settings lower it.
    """
    try:
        request = experiment.algorithm.default_resource_request(experiment.config)  # type: ignore[attr-defined]
        wanted = request.required_resources
    except (TypeError, ValueError, AttributeError):
        return  # samplers among the numbers: Tune will know per trial
    there = ray.cluster_resources()
    short = {k: (v, there.get(k, 0.0)) for k, v in wanted.items() if v > there.get(k, 0.0)}
    if not short:
        return
    asked = ", ".join(f"{v:g} {k} where there are {have:g}" for k, (v, have) in short.items())
    raise RLlibVLMError(
        f"one trial needs {asked}. Lower env_runners.num_env_runners, evaluation.evaluation_num_env_runners, "
        "learners.num_learners or what each of them asks for, join a larger cluster with --ray-address, "
        "or let them share with --num-cpus."
    )


def safe_name(name: str) -> str:
    """`name` with nothing but letters, digits, `.`, `_` and `-`, fit for a folder on any file system."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:80] or "experiment"


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint `path` means: itself, or the newest one of a trial or run folder.

    Raises:
        RLlibVLMError: there is none.
    """
    root = Path(path).expanduser().resolve()
    found = [root] if (root / "rllib_checkpoint.json").is_file() else []
    for pattern in ("checkpoint_*", "*/checkpoint_*"):
        found = found or [d for d in root.glob(pattern) if (d / "rllib_checkpoint.json").is_file()]
    if not found:
        what = "holds no checkpoint" if root.is_dir() else "is no folder"
        raise RLlibVLMError(f"{root} {what}; give a checkpoint, a trial's folder or a run's folder")
    return max(found, key=lambda d: (d.parent.stat().st_mtime, d.name))


def _new(experiment: Experiment, storage: str | Path, name: str | None) -> tuple[str | Path, tune.Tuner]:
    remote = "://" in str(storage)
    root: Any = str(storage) if remote else Path(storage).expanduser().resolve()
    if name is None:
        name = f"{safe_name(experiment.name)}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
        while not remote and (root / name).exists():
            name += "_1"
    name = safe_name(name)
    if not remote and (root / name / "tuner.pkl").exists():
        raise RLlibVLMError(
            f"{root / name} holds a run already; go on with it (--resume {root / name}) or take another --name"
        )
    trial_name = partial(_trial_name, safe_name(f"{experiment.algorithm.__name__}_{experiment.env or 'env'}"))
    several = experiment.num_samples > 1 or _has_samplers(experiment.config)
    tuner = tune.Tuner(
        experiment.algorithm,
        param_space=experiment.config,
        tune_config=tune.TuneConfig(
            metric=experiment.metric,
            mode=experiment.mode,
            num_samples=experiment.num_samples,
            max_concurrent_trials=experiment.max_concurrent_trials,
            time_budget_s=experiment.time_budget_s,
            scheduler=experiment.scheduler,
            search_alg=experiment.search,
            trial_name_creator=trial_name,
            trial_dirname_creator=trial_name,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(root),
            stop=MetricStopper(experiment.stop) if experiment.stop else None,
            checkpoint_config=tune.CheckpointConfig(**experiment.checkpoints.model_dump()),
            failure_config=tune.FailureConfig(max_failures=experiment.max_failures),
            sync_config=tune.SyncConfig(sync_artifacts=True, sync_period=60),
            callbacks=[ProgressLines(several_trials=several), *experiment.loggers, KeepFiles()],
            verbose=0,
        ),
    )
    return (f"{str(root).rstrip('/')}/{name}" if remote else root / name), tuner


def resumable(resume: str | Path) -> Any:
    """The run folder `resume` means; needs no Ray.

    Raises:
        RLlibVLMError: there is no run in it.
    """
    folder: Any = str(resume) if "://" in str(resume) else Path(resume).expanduser().resolve()
    if not str(resume) or not tune.Tuner.can_restore(str(folder)):
        raise RLlibVLMError(
            f"{folder} holds no run to resume; give the run folder that was printed at its start"
        )
    return folder


def _restore(experiment: Experiment, resume: str | Path) -> tuple[str | Path, tune.Tuner]:
    folder = resumable(resume)
    tuner = tune.Tuner.restore(
        str(folder), trainable=experiment.algorithm, param_space=experiment.config, resume_errored=True
    )
    if all(r.metrics and r.metrics.get("done") and r.error is None for r in tuner.get_results()):
        raise RLlibVLMError(f"{folder}: every trial of this run is finished; there is nothing to resume")
    return folder, tuner


def _trial_name(stem: str, trial: Any) -> str:
    return f"{stem}_{safe_name(trial.trial_id)}"


def _has_samplers(config: Any) -> bool:
    from ray.tune.search.variant_generator import parse_spec_vars

    _, domains, grids = parse_spec_vars(config.to_dict())
    return bool(domains or grids)


def _reason(error: BaseException) -> str:
    """The user's own line of a trial's error: Ray wraps it in several of its own."""
    lines = [x for x in "".join(traceback.format_exception_only(error)).strip().splitlines() if x.strip()]
    ours = [x for x in lines if "rllib_vlm.errors." in x]
    return (ours or lines or [repr(error)])[-1].strip()
