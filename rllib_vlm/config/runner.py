"""Experiment -> `tune.Tuner(...).fit()`, in a folder of its own, with Ray started and kept quiet."""

from __future__ import annotations

import logging
import re
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.error import TuneError

from rllib_vlm import registry
from rllib_vlm.algorithms import supply
from rllib_vlm.algorithms.checkpointing import CheckpointedAlgorithm
from rllib_vlm.algorithms.placement import Demand
from rllib_vlm.config.experiment import VARIANTS_CHECKED, Experiment
from rllib_vlm.config.lock import held
from rllib_vlm.config.progress import MetricStopper, ProgressLines
from rllib_vlm.config.quiet import quiet
from rllib_vlm.config.records import KeepFiles, Records
from rllib_vlm.config.resuming import Changes, make_ready
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
    """Joins the cluster at `address`, or starts Ray on this machine; does nothing where Ray is up already.

    Without either argument a cluster that was started on this machine (`ray start`), or that RAY_ADDRESS names, is
    joined; `num_cpus` asks for a Ray of its own, since one that runs has its number already.
    """
    quiet()
    if ray.is_initialized():
        return
    if address is not None:
        try:
            ray.init(address=address, log_to_driver=True, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RLlibVLMError(
                f"--ray-address {address}: no cluster can be joined there: {' '.join(str(error).split())}"
            ) from error
        return
    try:
        ray.init(
            address=None if num_cpus is None else "local",
            num_cpus=num_cpus,
            include_dashboard=dashboard,
            log_to_driver=True,
            logging_level=logging.ERROR,
            runtime_env={
                "env_vars": {
                    "PYTHONWARNINGS": "ignore::DeprecationWarning",
                    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                },
                "worker_process_setup_hook": "rllib_vlm.config.quiet.quiet",
            },
        )
    except Exception as error:  # such as one that gave up waiting, on a machine with much else to do
        raise RLlibVLMError(
            f"Ray cannot be started on this machine: {' '.join(str(error).split())} If the machine is busy with "
            "something else, try again when it is not."
        ) from error


def run(
    experiment: Experiment,
    *,
    storage: str | Path = "results",
    name: str | None = None,
    resume: str | Path | None = None,
    overwrite: bool = False,
    changes: Changes | None = None,
) -> Outcome:
    """Runs one experiment to its end; Ray must be up.

    Args:
        experiment: what to run.
        storage: the folder run folders are made in, or a cloud URI such as s3://bucket/path.
        name: the run folder's name; by default the experiment's name and the time.
        resume: a run folder to go on with, instead of starting a new one.
        overwrite: replace a run of that name, with all that is in its folder.
        changes: how long a resumed run may be now, and who learns.

    Raises:
        RLlibVLMError: a trial asks for more than the machine has, the folder to resume holds no run, the folder
            of a new one holds something, or another process trains in it.
    """
    if resume is not None and (overwrite or name is not None):
        raise RLlibVLMError(
            "a run is resumed, or it is a new one with a name, or one that overwrites: not both"
        )
    register(experiment)
    check_placement(experiment)
    if resume is not None:
        folder = resumable(resume)
    else:
        claim(storage, name, overwrite=overwrite)
        folder = _folder(storage, name) if name is not None else _unused(storage, experiment)
    with held(folder), _terminated_as_interrupted():
        if resume is not None:
            tuner = _restore(experiment, folder, changes or Changes())
        else:
            tuner = _new(experiment, folder, overwrite=overwrite)
        return _fit(experiment, folder, tuner)


def _fit(experiment: Experiment, folder: str | Path, tuner: tune.Tuner) -> Outcome:
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


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, by which Slurm, Kubernetes and `kill` end a run, does what Ctrl-C does: its notes are written.

    Ray's own handler, there since Ray was started, aborts the process.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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


def check_placement(experiment: Experiment) -> None:
    """Refuses trials no cluster of this size can ever hold: Tune would wait for them without a word.

    Raises:
        PlacementError: says what is asked for beside what is there, and which settings lower it.
    """
    for demand in _demands(experiment):
        supply.ensure(demand, wait_s=getattr(experiment.config, "nodes_wait_s", 0.0))


def _demands(experiment: Experiment) -> Iterator[Demand]:
    """Of the first variants of the search space."""
    from ray.tune.search.variant_generator import generate_variants

    algorithm: Any = experiment.algorithm
    seen = []
    for _, resolved in islice(generate_variants(experiment.config.to_dict()), VARIANTS_CHECKED):
        if hasattr(algorithm, "demand"):
            demand = algorithm.demand(resolved)
        else:
            demand = Demand.of_request(algorithm.default_resource_request(resolved))
        if demand not in seen:
            seen.append(demand)
            yield demand


def safe_name(name: str) -> str:
    """`name` with nothing but letters, digits, `.`, `_` and `-`, fit for a folder on any file system."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:80] or "experiment"


def claim(storage: str | Path, name: str | None, *, overwrite: bool = False) -> None:
    """Refuses the name of a run folder that is taken; needs no Ray.

    Raises:
        RLlibVLMError: nothing can be written to `storage`; there is a run of that name which is not to be
            overwritten, or something that is no run.
    """
    if name is None and overwrite:
        raise RLlibVLMError("--overwrite replaces the run of a name: give --name too")
    folder = _folder(storage, name or "")
    if isinstance(folder, Path):
        _require_writable(folder.parent)
    if name is None:
        return
    try:
        run = tune.Tuner.can_restore(str(folder))
    except (
        OSError,
        ValueError,
        ImportError,
    ) as error:  # a scheme nobody knows, a bucket that does not answer
        raise RLlibVLMError(
            f"--storage {storage}: {error}; give a folder, or a URI such as s3://BUCKET/PATH"
        ) from error
    if run and isinstance(folder, str) and overwrite:
        raise RLlibVLMError(f"{folder} is not on this machine and is not overwritten; take another --name")
    if run and not overwrite:
        raise RLlibVLMError(
            f"{folder} holds a run already; go on with it (--resume {folder}), replace it and all that is in it "
            "(--overwrite), or take another --name"
        )
    if (
        not run
        and isinstance(folder, Path)
        and folder.exists()
        and (folder.is_file() or any(folder.iterdir()))
    ):
        raise RLlibVLMError(f"{folder} exists and is no run's folder; take another --name")


def _folder(storage: str | Path, name: str) -> str | Path:
    """Where a run of that name is: a folder, or a URI."""
    if "://" in str(storage):
        return f"{str(storage).rstrip('/')}/{safe_name(name)}"
    try:
        return Path(storage).expanduser().resolve() / safe_name(name)
    except (OSError, RuntimeError) as error:  # a home that nobody has, a link to itself
        raise RLlibVLMError(f"--storage {storage}: {error}") from error


def _require_writable(storage: Path) -> None:
    """Finds a full or read-only disk out before anything starts; makes nothing, since the run may be refused yet."""
    try:
        there = next(folder for folder in (storage, *storage.parents) if folder.exists())
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x")
    except OSError as error:
        raise RLlibVLMError(
            f"--storage {storage}: no run can be written there: {error.strerror}; give another folder"
        ) from error


def _unused(storage: str | Path, experiment: Experiment) -> str | Path:
    """The experiment's name and the time."""
    name = f"{safe_name(experiment.name)}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    while isinstance(folder := _folder(storage, name), Path) and folder.exists():
        name += "_1"
    return folder


def _new(experiment: Experiment, folder: str | Path, *, overwrite: bool) -> tune.Tuner:
    if overwrite and isinstance(folder, Path):
        for old in folder.iterdir():  # the folder itself stays: it is locked
            old.unlink() if old.is_symlink() or not old.is_dir() else shutil.rmtree(old)
    place, _, name = str(folder).rpartition("/")
    trial_name = partial(_trial_name, safe_name(f"{experiment.algorithm.__name__}_{experiment.env or 'env'}"))
    several = experiment.num_samples > 1 or _has_samplers(experiment.config)
    return tune.Tuner(
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
            storage_path=place or "/",
            stop=MetricStopper(experiment.stop) if experiment.stop else None,
            checkpoint_config=tune.CheckpointConfig(**experiment.checkpoints.model_dump()),
            failure_config=tune.FailureConfig(max_failures=experiment.max_failures),
            sync_config=tune.SyncConfig(sync_artifacts=True, sync_period=60),
            callbacks=[
                ProgressLines(several_trials=several),
                Records(),
                *experiment.loggers,
                KeepFiles(),
            ],
            verbose=0,
        ),
    )


def resumable(resume: str | Path) -> Any:
    """The run folder `resume` means; needs no Ray.

    Raises:
        RLlibVLMError: there is no run in it.
    """
    try:
        folder: Any = str(resume) if "://" in str(resume) else Path(resume).expanduser().resolve()
        there = bool(str(resume)) and tune.Tuner.can_restore(str(folder))
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # a home nobody has, a link to itself, an unknown scheme
        raise RLlibVLMError(f"--resume {resume}: {error}") from error
    if not there:
        raise RLlibVLMError(
            f"{folder} holds no run to resume; give the run folder that was printed at its start"
        )
    return folder


def _restore(experiment: Experiment, folder: str | Path, changes: Changes) -> tune.Tuner:
    try:
        tuner = tune.Tuner.restore(
            str(folder), trainable=experiment.algorithm, param_space=experiment.config, resume_errored=True
        )
    except ValueError as error:  # Tune's, where the algorithm or the names of settings are others
        raise RLlibVLMError(
            f"{folder} was not started by the experiment {experiment.name!r} of {experiment.source} as it is now: "
            f"{_difference(str(error))}. Give --resume the file it was started with."
        ) from error
    except Exception as error:  # pickles that are torn raise anything
        raise RLlibVLMError(
            f"{folder} cannot be resumed: its tuner.pkl cannot be read ({type(error).__name__}: {error}). Its "
            "checkpoints are not touched: rllib evaluate and rllib export take them."
        ) from error
    if isinstance(folder, Path):
        whole = issubclass(experiment.algorithm, CheckpointedAlgorithm)
        for sentence in make_ready(folder, changes=changes, manifests=whole):
            print(sentence, flush=True)  # noqa: T201
    return tuner


def _difference(refusal: str) -> str:
    """What Tune's refusal to restore says: two names of an algorithm, or two lists of all settings."""
    now, separator, then = refusal.partition("Expected:")
    if not separator:
        return " ".join(refusal.rpartition("Got ")[2].rstrip(".").split())
    settings = [set(re.findall(r"'([^']*)'", part)) for part in (now.partition("Got:")[2], then)]
    only = sorted(settings[0] ^ settings[1])
    more = f" and {len(only) - 5} more" if len(only) > 5 else ""
    return f"only one of them has the settings {', '.join(only[:5])}{more}"


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
