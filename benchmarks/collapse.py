"""What the collapse guard is worth: faults put into a real short run, with the guard and without it.

`python -m benchmarks collapse [FAULT ...] [healthy=N]`, by default all faults and 10 undisturbed runs. FrozenLake in
text with PPO (`tuned_examples/frozen_lake_ppo.yaml`, shortened): all runs begin at one warm start, faults strike after
`STRIKE` updates, success is that of 200 held-out lakes at the end. About 6 minutes a run on 2 cores.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

from rllib_vlm.callbacks import configured
from rllib_vlm.config.loader import load
from rllib_vlm.config.resources import examples
from rllib_vlm.config.runner import register, start_ray
from rllib_vlm.errors import RLlibVLMError, UnknownNameError
from rllib_vlm.guard.collapse_guard import EVENTS_FILE

UPDATES, STRIKE = 45, 15
_SETTINGS = (
    f"training.total_updates={UPDATES}",
    "training.groups_per_update=96",
    "training.minibatch_size=128",
    "evaluation.evaluation_at=[final]",
)
_GUARD: dict[str, Any] = {"every": 3}
Fault = Callable[[Any, bool], None]


def run(*arguments: str) -> dict[str, Any]:
    """Headline: faults, of those tried, after which the guarded run ends within 5 points of the undisturbed one."""
    healthy = next((int(a.split("=")[1]) for a in arguments if a.startswith("healthy=")), 10)
    chosen = [a for a in arguments if not a.startswith("healthy=")] or list(FAULTS)
    for name in chosen:
        if name not in FAULTS:
            raise UnknownNameError("collapse", name, FAULTS)
    experiment = load(examples()["frozen_lake_ppo"], overrides=_SETTINGS)[0]
    start_ray(dashboard=False)
    register(experiment)
    try:
        with tempfile.TemporaryDirectory() as folder:
            begun = _warm_start(experiment, Path(folder) / "begun")
            undisturbed = [_play(experiment, begun, seed, guarded=True) for seed in range(healthy)]
            plain = undisturbed[0] if undisturbed else _play(experiment, begun, 0, guarded=False)
            struck = {
                (name, guarded): _play(experiment, begun, 0, guarded=guarded, fault=FAULTS[name])
                for name in chosen
                for guarded in (False, True)
            }
    finally:
        ray.shutdown()
    base = plain["success"]
    saved = [name for name in chosen if struck[name, True]["success"] >= base - 0.05]
    details: dict[str, Any] = {"undisturbed: success": base, "undisturbed runs": healthy}
    details["undisturbed runs rolled back or stopped"] = sum(
        bool(r["rollbacks"] or r["stopped"]) for r in undisturbed
    )
    details["undisturbed runs: success"] = json.dumps([r["success"] for r in undisturbed])
    for name in chosen:
        for guarded in (False, True):
            found = struck[name, guarded]
            what = f"{name}, {'guarded' if guarded else 'without guard'}"
            details[f"{what}: success"] = found["success"]
            if guarded:
                details[f"{what}: rollbacks"] = found["rollbacks"]
            if found["stopped"]:
                details[f"{what}: stopped"] = found["stopped"]
    return {
        "name": "collapse", "value": len(saved), "unit": f"of {len(chosen)} faults survived", "details": details,
    }  # fmt: skip


def _warm_start(experiment: Any, folder: Path) -> Path:
    algorithm = experiment.config.copy(copy_frozen=False).callbacks([]).build_algo()
    try:
        while algorithm.run_state.phase == "warm_start":
            algorithm.train()
        algorithm.save_to_path(str(folder))
    finally:
        algorithm.stop()
    return folder


def _play(
    experiment: Any, begun: Path, seed: int, *, guarded: bool, fault: tuple[Fault, int] | None = None
) -> dict[str, Any]:
    """One run from the warm start to its end: success on held-out lakes (0 if it broke off), and what the guard did."""
    config = experiment.config.copy(copy_frozen=False).callbacks([]).debugging(seed=seed)
    if guarded:
        config.callbacks(configured("guard", **_GUARD))
    algorithm = config.build_algo()
    state = algorithm.run_state
    found: dict[str, Any] = {"success": 0.0, "stopped": ""}
    active = False
    try:
        algorithm.restore_from_path(str(begun))
        result: dict[str, Any] = {}
        while (state := algorithm.run_state).phase != "finished":
            if fault is not None:
                strike, updates = fault
                wanted = STRIKE <= state.updates < STRIKE + updates and not state.rollbacks
                if wanted != active:
                    strike(algorithm, wanted)
                    active = wanted
            result = algorithm.train()
        found["success"] = float(result["evaluation"]["success_rate"])
    except (RLlibVLMError, RuntimeError, ray.exceptions.RayError) as error:
        found["stopped"] = str(error).strip().splitlines()[-1][:200]
    finally:
        found["rollbacks"] = state.rollbacks
        log = Path(algorithm.logdir) / EVENTS_FILE
        found["alarms"] = len(log.read_text().splitlines()) if log.is_file() else 0
        algorithm.stop()
    print(f"seed {seed} guarded {guarded} {found}", file=sys.stderr, flush=True)
    return found


# Faults: begun before update STRIKE, and ended some updates later or as soon as the run has gone back.


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
    """A weight whose gradient is not a number."""
    algorithm.learner_group.foreach_learner(func=partial(_poison, on=begins))


def _poison(learner: Any, *, on: bool) -> None:
    if on:
        parameter = next(learner.module["default_policy"].parameters())
        vars(learner)["_poison"] = parameter.register_hook(lambda g: torch.full_like(g, torch.nan))
    else:
        vars(learner).pop("_poison").remove()


def _stale_weights(algorithm: Any, begins: bool) -> None:
    """Runners keep the weights they have."""
    _replace(algorithm, "_sync_weights", _keep if begins else None)


def _keep(algorithm: Any, group: Any) -> None:
    """Sends nothing."""


def _corrupted_value_head(algorithm: Any, begins: bool) -> None:
    """The critic's weights are noise."""
    if begins:
        algorithm.learner_group.foreach_learner(func=_corrupt)


@torch.no_grad()
def _corrupt(learner: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in learner.module["default_policy"].unwrapped().value_head.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 3.0)


def _replace(algorithm: Any, method: str, by: Callable[..., None] | None) -> None:
    vars(algorithm).pop(method, None)
    if by is not None:
        setattr(algorithm, method, partial(by, algorithm))


# Name -> what is done, and for how many updates.
FAULTS: dict[str, tuple[Fault, int]] = {
    "learning_rate": (_learning_rate, 1),
    "flipped_rewards": (_flipped_rewards, 10),
    "nan_gradients": (_nan_gradients, 3),
    "stale_weights": (_stale_weights, 12),
    "corrupted_value_head": (_corrupted_value_head, 1),
}
