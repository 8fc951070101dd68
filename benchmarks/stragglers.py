"""What one slow simulator costs the fifteen beside it, and what it costs them in lockstep."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks._arguments import numbers
from benchmarks.rollout import lake_config
from rllib_vlm.env.vlm_env_runner import VLMEnvRunner

_FAST, _SLOW_S, _ROUNDS = 15, 2.0, 5
_EPISODES, _LOCKSTEP_EPISODES = 90, _FAST + 1
_TURNS = 4  # of an episode, so that the slow simulator's last one is soon over


class _Clock:
    """Notes when the fast slots took a turn, and when the last episode was begun: until then all slots were busy."""

    def __init__(self) -> None:
        self.turns: list[float] = []
        self.last_start = 0.0

    def turns_per_s(self, start: float, end: float) -> float:
        return sum(start < at <= end for at in self.turns) / (end - start)


def _runner(directory: str, name: str, *, slow: bool, batch_wait_ms: float) -> tuple[VLMEnvRunner, _Clock]:
    clock = _Clock()
    claim = Path(directory) / name
    if not slow:
        claim.touch()
    config = lake_config(_FAST + slow).simulation(process="subprocess", max_turns=_TURNS)
    lake = {**config.env_config, "seconds": _SLOW_S, "claim": str(claim)}
    config.environment("benchmarks._slow_lake:SlowLake", env_config=lake)
    config.env_runners(batch_wait_ms=batch_wait_ms)

    # Functions, and no methods: a copied configuration copies what a method is bound to.
    def created(**_: Any) -> None:
        clock.last_start = time.perf_counter()

    def step(*, episode: Any, **_: Any) -> None:
        if not episode.get_infos(0)["slow"]:
            clock.turns.append(time.perf_counter())

    config.callbacks(on_episode_created=created, on_episode_step=step)
    return VLMEnvRunner(config=config, worker_index=0, num_workers=0), clock


def _measure(runner: VLMEnvRunner, clock: _Clock, episodes: int, *, whole: bool) -> float:
    """Turns a second of the fast slots: as long as all were busy, or of the whole call."""
    clock.turns.clear()
    start = time.perf_counter()
    runner.sample(num_episodes=episodes)
    return clock.turns_per_s(start, time.perf_counter() if whole else clock.last_start)


def run(*arguments: str) -> dict[str, Any]:
    """The headline figure is what is left of the fast slots' turns a second once a slow one is beside them."""
    rounds = numbers("stragglers", arguments, {"rounds": _ROUNDS})["rounds"]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        ways = {
            "without the slow one": _runner(directory, "none", slow=False, batch_wait_ms=20.0),
            "asynchronous": _runner(directory, "one", slow=True, batch_wait_ms=20.0),
            "lockstep": _runner(directory, "step", slow=True, batch_wait_ms=math.inf),
        }
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        ways["without the slow one"][0].sample(num_episodes=_FAST)  # warm-up
        for _ in range(rounds):
            for name, (runner, clock) in ways.items():  # side by side, so that all meet the same machine
                lockstep = name == "lockstep"
                count = _LOCKSTEP_EPISODES if lockstep else _EPISODES
                speeds[name].append(_measure(runner, clock, count, whole=lockstep))
        for runner, _ in ways.values():
            runner.stop()
    speed = {name: median(values) for name, values in speeds.items()}
    return {
        "name": "stragglers",
        "value": round(speed["asynchronous"] / speed["without the slow one"], 3),
        "unit": f"of the turns a second of {_FAST} simulators, with one beside them that takes {_SLOW_S:g} s a turn",
        "details": {
            "lockstep": round(speed["lockstep"] / speed["without the slow one"], 3),
            **{f"turns a second of the fast, {name}": round(value, 1) for name, value in speed.items()},
            "rounds": rounds,
        },
    }
