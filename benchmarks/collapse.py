"""What the collapse guard is worth: faults put into a real short run, with the guard and without it.

`python -m benchmarks collapse [PART ...] [healthy=10] [seeds=3] [processes=2] [out=FILE]`. A part is a fault's name or
`undisturbed`; by default all are run: 5 faults, `seeds` times without the guard and as often with it, and 10
undisturbed runs with it. Undisturbed runs of different seeds end some 8 points from one another, so a fault's mean
over its seeds is held against the mean of undisturbed runs of the same seeds.
FrozenLake in text with PPO (`tuned_examples/frozen_lake_ppo.yaml`, made small by `_SETTINGS`): all runs begin at one
warm start, faults strike after `_AFTER` of `UPDATES` updates, success is that of 200 held-out lakes at the end.
Where a fault lasts to the end, also once it is taken away: what a checkpoint of the run is worth.

Each run is a process of one thread, `processes` of them side by side. Each adds a line to `FILE` as it ends; runs that
stand there are not run again, so that an interrupted benchmark goes on, and the warm start is kept beside it.
"Without the guard" also leaves out the learner's own check that a gradient is finite.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import ray
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks._results import commit
from benchmarks._rows import read_rows
from rllib_vlm.callbacks import configured
from rllib_vlm.callbacks.metrics import look_up
from rllib_vlm.config.experiment import Experiment
from rllib_vlm.config.loader import load
from rllib_vlm.config.resources import examples
from rllib_vlm.config.runner import register, start_ray
from rllib_vlm.errors import RLlibVLMError, UnknownNameError
from rllib_vlm.files import append_json_line, new_folder
from rllib_vlm.guard.collapse_guard import EVENTS_FILE

UPDATES = 22
_AFTER = 8  # updates a fault strikes
_SETTINGS = (
    "env_runners.num_env_runners=0",
    "env_runners.num_envs_per_env_runner=32",
    "learners.num_learners=0",
    "environment.env_config.size=3",
    "environment.env_config.max_steps=6",
    "simulation.max_turns=6",
    "warm_start.updates=6",
    f"training.total_updates={UPDATES}",
    "training.groups_per_update=96",
    "training.minibatch_size=64",
    "training.lr=3.0e-4",
    "training.lr_schedule=linear",  # at a constant rate an end is as good as its last update was
    "training.lr_final_fraction=0.1",
    "training.critic_warmup_updates=1",
    "training.old_logprobs=learner",  # the usual way where engine and learner differ, and what stale weights ruin
    "evaluation.evaluation_at=[warm_start_end,final]",
)
_GUARD: dict[str, Any] = {"every": 2}
_MARGIN = 0.05  # of success, within which a run ends as if nothing had been
_UNDISTURBED = "undisturbed"
_CONFIGURED = "_configured_weights"  # of an algorithm: those of its model before anything is learnt


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong in a run; a run that went back is spared the rest of it."""

    strike: Callable[[Any, bool], None]  # begins it, or ends it, in an algorithm
    updates: int  # that it lasts


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One of the runs to make; `fault` is a name of `FAULTS`, or `undisturbed`."""

    fault: str
    guarded: bool = True
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.fault}, {'guarded' if self.guarded else 'without guard'}, seed {self.seed}"


def run(*arguments: str) -> dict[str, Any]:
    """Headline: faults, of those tried, after which the guarded run ends within 5 points of the undisturbed one."""
    options = _options(arguments)
    wanted = _wanted(options)
    rows = read_rows(options.out, Run, ("fault", "guarded", "seed"), settings)
    missing = [one for one in wanted if one not in rows]
    if missing:
        made_by = commit()  # of the code that is loaded, whatever happens to the tree meanwhile
        with _kept(options.out) as begun:
            start_ray(dashboard=False, num_cpus=options.processes)
            try:
                for one, row in _played(missing, begun):
                    rows[one] = row
                    if options.out is not None:
                        line = {**asdict(one), **row, "commit": made_by, "settings": settings(one)}
                        append_json_line(options.out, line)
            finally:
                ray.shutdown()
    return _summary({one: rows[one] for one in wanted})


# What to run.


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    parts: tuple[str, ...]
    healthy: int = 10
    seeds: int = 3
    processes: int = 2
    out: Path | None = None


def _options(arguments: Sequence[str]) -> _Options:
    """Raises UnknownNameError for a part that is none, RLlibVLMError for a number that is none."""
    values = dict(a.split("=", 1) for a in arguments if "=" in a)
    parts = tuple(a for a in arguments if "=" not in a) or (*FAULTS, _UNDISTURBED)
    for known, given in (
        ((*FAULTS, _UNDISTURBED), parts),
        (("healthy", "seeds", "processes", "out"), values),
    ):
        for name in given:
            if name not in known:
                raise UnknownNameError("collapse", name, known)
    numbers = {name: value for name, value in values.items() if name != "out"}
    for name, value in numbers.items():
        if not value.isdecimal() or int(value) < 1:
            raise RLlibVLMError(f"{name}={value}: not a whole number of 1 or more, e.g. {name}=2")
    out = Path(values["out"]) if "out" in values else None
    return _Options(parts=parts, out=out, **{name: int(value) for name, value in numbers.items()})


def _wanted(options: _Options) -> list[Run]:
    """The runs of all parts, the longest first; undisturbed ones to compare with are always among them."""
    faults = [name for name in options.parts if name != _UNDISTURBED]
    compared = options.seeds if faults else 0
    healthy = max(compared, options.healthy if _UNDISTURBED in options.parts else 0)
    return [
        *(
            Run(fault=name, guarded=guarded, seed=seed)
            for guarded in (False, True)
            for seed in range(options.seeds)
            for name in faults
        ),
        *(Run(fault=_UNDISTURBED, seed=seed) for seed in range(healthy)),
    ]


def settings(one: Run) -> dict[str, Any]:
    """By which a row is known to be of this benchmark as it is."""
    fault = FAULTS.get(one.fault)
    return {
        **_beginning(),
        "guard": _GUARD,
        "fault": fault and {"after": _AFTER, "updates": fault.updates},
    }


def _beginning() -> dict[str, Any]:
    return {"example": zlib.crc32(examples()["frozen_lake_ppo"].read_bytes()), "overrides": list(_SETTINGS)}


@contextmanager
def _kept(out: Path | None) -> Iterator[Path]:
    """Where the warm start of these settings stands: beside `out`, or for this once."""
    if out is not None:
        digest = zlib.crc32(json.dumps(_beginning()).encode())
        yield out.absolute().with_name(f"{out.name}.{digest:08x}.begun")
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "begun"


def _summary(rows: dict[Run, dict[str, Any]]) -> dict[str, Any]:
    undisturbed = {one.seed: row for one, row in rows.items() if one.fault == _UNDISTURBED}
    struck: dict[tuple[str, bool], dict[int, dict[str, Any]]] = {}
    for one, row in rows.items():
        if one.fault != _UNDISTURBED:
            struck.setdefault((one.fault, one.guarded), {})[one.seed] = row
    away = {
        which: _success(by_seed) - _success({seed: undisturbed[seed] for seed in by_seed})
        for which, by_seed in struck.items()
    }
    survived = [fault for (fault, guarded), points in away.items() if guarded and points >= -_MARGIN]
    details: dict[str, Any] = {
        "warm start: success": next(iter(undisturbed.values()))["warm_start"],
        "undisturbed: success": round(_success(undisturbed), 4),
        "undisturbed runs": len(undisturbed),
        "undisturbed runs rolled back or stopped": sum(
            bool(row["rollbacks"] or row["stopped"]) for row in undisturbed.values()
        ),
        "undisturbed runs with an alarm": sum(row["alarms"] > 0 for row in undisturbed.values()),
        "undisturbed runs with a sign that stands alone": sum(
            row.get("signs", 0) > 0  # older rows have them among the alarms
            for row in undisturbed.values()
        ),
        "undisturbed runs: success": json.dumps([row["success"] for row in undisturbed.values()]),
        "faults that harm a run without guard": sum(
            not guarded and points < -_MARGIN for (_, guarded), points in away.items()
        ),
        "CPU-seconds, all runs": sum(row["cpu_s"] for row in rows.values()),
    }
    for (fault, guarded), by_seed in sorted(struck.items()):
        what = f"{fault}, {'guarded' if guarded else 'without guard'}"
        details[f"{what}: success"] = round(_success(by_seed), 4)
        details[f"{what}: from undisturbed runs of the same seeds"] = round(away[fault, guarded], 4)
        if guarded:
            details[f"{what}: rollbacks"] = sum(row["rollbacks"] for row in by_seed.values())
        if mended := [row["mended"] for row in by_seed.values() if "mended" in row]:
            details[f"{what}: success once the fault is taken away"] = round(fmean(mended), 4)
        if stopped := [row["stopped"] for row in by_seed.values() if row["stopped"]]:
            details[f"{what}: stopped"] = "; ".join(stopped)
    return {
        "name": "collapse",
        "value": len(survived),
        "unit": f"of {sum(guarded for _, guarded in struck)} faults survived",
        "details": details,
    }


def _success(by_seed: Mapping[int, dict[str, Any]]) -> float:
    return fmean(row["success"] for row in by_seed.values())


# Runs.


def _played(runs: Sequence[Run], begun: Path) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Each run as it ends; as many at a time as Ray has CPUs."""
    start, play = ray.remote(max_retries=0)(_warm_start), ray.remote(max_retries=0)(_play)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("collapse: warm start", total=len(runs))
        if not begun.is_dir():
            ray.get(start.remote(begun))
        bar.update(task, description="collapse: runs")
        waiting = {play.remote(one, begun): one for one in runs}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            one, row = waiting.pop(done), ray.get(done)
            bar.console.print(f"{one}: {row}", highlight=False)
            bar.advance(task)
            yield one, row


def _experiment() -> Experiment:
    torch.set_num_threads(1)
    experiment = load(examples()["frozen_lake_ppo"], overrides=_SETTINGS)[0]
    register(experiment)
    return experiment


def _warm_start(folder: Path) -> None:
    """Writes the state that all runs begin at, evaluated."""
    algorithm = _experiment().config.copy(copy_frozen=False).callbacks([]).build_algo()
    try:
        while algorithm.run_state.phase == "warm_start":
            algorithm.train()
        with new_folder(folder) as temporary:
            algorithm.save_to_path(str(temporary))
    finally:
        algorithm.stop()


def _play(one: Run, begun: Path) -> dict[str, Any]:
    """A run from the warm start to its end: success on held-out lakes (0 if it broke off), and what the guard did."""
    cpu, wall = time.process_time(), time.perf_counter()
    config = _experiment().config.copy(copy_frozen=False).callbacks([]).debugging(seed=one.seed)
    if one.guarded:
        config.callbacks(configured("guard", **_GUARD))
    algorithm = config.build_algo()
    found: dict[str, Any] = {"success": 0.0, "stopped": ""}
    fault = FAULTS.get(one.fault)
    training: list[float | None] = []
    active = False
    runner = algorithm.env_runner_group.local_env_runner
    vars(algorithm)[_CONFIGURED] = copy.deepcopy(runner.module.get_state(inference_only=True))
    algorithm.restore_from_path(str(begun))
    found["warm_start"] = float(algorithm.run_state.evaluations["warm_start_end"]["success_rate"])
    try:
        if not one.guarded:
            algorithm.learner_group.foreach_learner(func=_unchecked)
        while (state := algorithm.run_state).phase != "finished":
            if fault is not None:
                wanted = 0 <= state.updates - _AFTER < fault.updates and not state.rollbacks
                if wanted != active:
                    fault.strike(algorithm, wanted)
                    active = wanted
            training.append(look_up(algorithm.train(), "env_runners/success_rate"))
        found["success"] = float(state.evaluations["final"]["success_rate"])
        if fault is not None and active:  # what a checkpoint of the run is worth once its fault is mended
            fault.strike(algorithm, False)
            found["mended"] = float(algorithm.evaluate()["success_rate"])
    except (RLlibVLMError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        found["stopped"] = (str(error).strip() or repr(error)).splitlines()[-1][:200]
    finally:
        state = algorithm.run_state
        log = Path(algorithm.logdir) / EVENTS_FILE
        lines = log.read_text().splitlines() if log.is_file() else []
        found |= {
            "training": training,
            "rollbacks": state.rollbacks,
            **{
                f"{kind}s": sum(json.loads(line)["event"] == kind for line in lines)
                for kind in ("sign", "alarm")
            },
            "cpu_s": round(time.process_time() - cpu, 1),
            "wall_s": round(time.perf_counter() - wall, 1),
        }
        algorithm.stop()
    return found


def _unchecked(learner: Any) -> None:
    """Steps are taken whatever the gradient is."""
    vars(learner)["_apply"] = partial(_step, learner)


def _step(learner: Any) -> None:
    groups = [group for optimizer in learner._optimizers for group in optimizer.param_groups]  # noqa: SLF001
    parameters = [p for group in groups for p in group["params"] if p.grad is not None]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, learner.config.grad_clip))
    for optimizer in learner._optimizers:  # noqa: SLF001
        optimizer.step()
    learner._step_metrics.add_gradient(norm)  # noqa: SLF001


# Faults: begun after some updates, and ended some updates later or as soon as the run has gone back.


def _learning_rate(algorithm: Any, begins: bool) -> None:
    """A thousand times the learning rate."""
    _replace(algorithm, "_learn", _learn_fast if begins else None)


def _learn_fast(algorithm: Any, episodes: Any, plan: Any) -> None:
    type(algorithm)._learn(algorithm, episodes, replace(plan, lr=1000.0 * plan.lr))  # noqa: SLF001


def _flipped_rewards(algorithm: Any, begins: bool) -> None:
    """Rewards count with the wrong sign."""
    _replace(algorithm, "_learn", _learn_flipped if begins else None)


def _learn_flipped(algorithm: Any, episodes: Any, plan: Any) -> None:
    for episode in episodes:
        episode.rewards.data = [-r for r in episode.rewards.data]
    type(algorithm)._learn(algorithm, episodes, plan)  # noqa: SLF001


def _nan_gradients(algorithm: Any, begins: bool) -> None:
    """Gradients that are not numbers."""
    algorithm.learner_group.foreach_learner(func=partial(_poison, on=begins))


def _poison(learner: Any, *, on: bool) -> None:
    if on:
        parameters = [p for p in learner.module["default_policy"].parameters() if p.requires_grad]
        hooks = [p.register_hook(lambda g: torch.full_like(g, torch.nan)) for p in parameters]
        vars(learner)["_poison"] = hooks
    else:
        for hook in vars(learner).pop("_poison"):
            hook.remove()


def _stale_sampler(algorithm: Any, begins: bool) -> None:
    """The runner falls back to the model of the config, and samples with it as if its weights were the newest.

    As an engine does that starts again and loads the model it was configured with, before all that the run has learnt.
    """
    group = algorithm.env_runner_group
    if begins:  # a model of its own, as an engine has
        group.local_env_runner.make_module()
        algorithm._shared = False  # noqa: SLF001
    algorithm._sync_weights(group)  # noqa: SLF001
    if begins:
        group.local_env_runner.module.set_state(vars(algorithm)[_CONFIGURED])
    _replace(algorithm, "_learn", _learn_alone if begins else None)


def _learn_alone(algorithm: Any, episodes: Any, plan: Any) -> None:
    _replace(algorithm, "_sync_weights", _keep)
    try:
        type(algorithm)._learn(algorithm, episodes, plan)  # noqa: SLF001
    finally:
        _replace(algorithm, "_sync_weights", None)


def _keep(algorithm: Any, group: Any) -> None:
    """Sends nothing."""


def _corrupted_value_head(algorithm: Any, begins: bool) -> None:
    """The critic's weights are noise at the beginning of each update."""
    _replace(algorithm, "_learn", _learn_corrupted if begins else None)


def _learn_corrupted(algorithm: Any, episodes: Any, plan: Any) -> None:
    algorithm.learner_group.foreach_learner(func=_corrupt)
    type(algorithm)._learn(algorithm, episodes, plan)  # noqa: SLF001


@torch.no_grad()
def _corrupt(learner: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in learner.module["default_policy"].unwrapped().value_head.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 3.0)


def _replace(algorithm: Any, method: str, by: Callable[..., None] | None) -> None:
    vars(algorithm).pop(method, None)
    if by is not None:
        setattr(algorithm, method, partial(by, algorithm))


FAULTS: dict[str, Fault] = {
    "learning_rate": Fault(strike=_learning_rate, updates=1),
    "flipped_rewards": Fault(strike=_flipped_rewards, updates=10),
    "nan_gradients": Fault(strike=_nan_gradients, updates=3),
    # An engine with old weights stays so until somebody sees it, and evaluation is played by it too.
    "stale_sampler": Fault(strike=_stale_sampler, updates=UPDATES),
    "corrupted_value_head": Fault(strike=_corrupted_value_head, updates=8),
}
