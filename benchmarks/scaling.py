"""How turns a second grow with env runner processes, and what a turn costs as simulators grow in number."""

from __future__ import annotations

import os
import time
from statistics import median
from typing import Any

import ray
import torch

from benchmarks._arguments import numbers
from benchmarks._cluster import local_ray
from benchmarks.rollout import lake_config
from rllib_vlm.env.vlm_env_runner import VLMEnvRunner

_ROUNDS = 5
_SLOTS = 16  # of each runner process
_SIMULATORS = (1, 4, 16, 64)


def run(*arguments: str) -> dict[str, Any]:
    """The headline figure is the turns a second of two env runner processes over those of one."""
    torch.set_num_threads(1)
    repeats = numbers("scaling", arguments, {"rounds": _ROUNDS})["rounds"]
    cost = _cost_per_turn(repeats)
    with local_ray():
        one, two = _processes(repeats)
    flat = cost[_SIMULATORS[-1]] / cost[_SIMULATORS[-2]]
    return {
        "name": "scaling",
        "value": round(two / one, 3),
        "unit": "times the turns a second of one env runner process, with two",
        "details": {
            "turns a second, one process": round(one, 1),
            "turns a second, two processes": round(two, 1),
            **{f"ms of processor a turn, {n} simulators": round(1e3 * s, 2) for n, s in cost.items()},
            f"cost of a turn, {_SIMULATORS[-1]} over {_SIMULATORS[-2]} simulators": round(flat, 3),
            "cores": len(os.sched_getaffinity(0)),
            "load of the machine at the end, 1 minute": round(os.getloadavg()[0], 2),
            "rounds": repeats,
        },
    }


def _cost_per_turn(rounds: int) -> dict[int, float]:
    """Processor seconds of a turn, by simulators that are played at once in one process."""
    runners = {n: VLMEnvRunner(config=lake_config(n), worker_index=0, num_workers=0) for n in _SIMULATORS}
    seconds: dict[int, list[float]] = {n: [] for n in runners}
    for attempt in range(rounds + 1):
        for n, runner in runners.items():
            begin = time.process_time()
            turns = sum(map(len, runner.sample(num_episodes=max(n, 2))))
            if attempt:  # the first is a warm-up
                seconds[n].append((time.process_time() - begin) / turns)
    for runner in runners.values():
        runner.stop()
    return {n: median(values) for n, values in seconds.items()}


def _processes(rounds: int) -> tuple[float, float]:
    """Turns a second of one env runner process, and of two at once."""
    make = ray.remote(num_cpus=1)(VLMEnvRunner)
    config = lake_config(_SLOTS)
    runners = [make.remote(config=config, worker_index=i + 1, num_workers=2) for i in range(2)]

    def turns_per_s(count: int) -> float:
        start = time.perf_counter()
        played = ray.get([r.apply.remote(_play) for r in runners[:count]])
        return sum(played) / (time.perf_counter() - start)

    turns_per_s(2)  # warm-up
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for count in speeds:  # side by side, so that both meet the same machine
            speeds[count].append(turns_per_s(count))
    ray.get([r.stop.remote() for r in runners])
    return median(speeds[1]), median(speeds[2])


def _play(runner: VLMEnvRunner) -> int:
    return sum(map(len, runner.sample(num_episodes=2 * _SLOTS)))
