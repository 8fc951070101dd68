"""Turns a second with 64 conversations in flight, beside one at a time and beside a bare loop, on two cores.

What goes on at once has both cores: two env runner processes of 32 conversations each, as a run on two cores has them,
or the bare loop in two processes of 32 each. One conversation at a time has the machine to itself, of which it can
use one core.
"""

from __future__ import annotations

import os
import time
from statistics import median
from typing import Any

import ray
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from benchmarks._arguments import numbers
from benchmarks._bare_loop import play
from benchmarks._cluster import local_ray
from rllib_vlm.algorithms.ppo import VLMPPOConfig
from rllib_vlm.env.vlm_env_runner import VLMEnvRunner
from rllib_vlm.models.cached_attention import compiled
from rllib_vlm.sims.frozen_lake import FrozenLake

IN_FLIGHT, TURNS, _PROCESSES, _ROUNDS = 64, 8, 2, 9
_ALONE = 6  # episodes one after the other: about as long as those that go on at once, a second
_STEPS = 50  # of the lake: episodes go to the limit of turns, or into a hole, or to the goal
_RUNNERS, _SINGLE, _BARE = _WAYS = ("env runners", "one at a time", "bare loop")


def lake_config(slots: int) -> VLMPPOConfig:
    """The lake in text, the whole conversation in the prompt, answers of up to 12 tokens, no learning."""
    config = VLMPPOConfig()
    config.environment("frozen_lake", env_config={"observation": "text", "max_steps": _STEPS})
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=slots, torch_threads=1)
    config.learners(torch_threads=1)
    config.prompting(parser="no_think", template="short", history="full", observation="text")
    config.generation(max_new_tokens=12).simulation(max_turns=TURNS)
    config.rl_module(model_config={"size": "tiny", "hidden_size": 128, "num_layers": 4})
    return config


def run(*arguments: str) -> dict[str, Any]:
    """The headline figure is the env runners' turns a second over those of one conversation at a time."""
    rounds = numbers("rollout", arguments, {"rounds": _ROUNDS})["rounds"]
    with local_ray(_PROCESSES):
        wall, metrics = _measure(rounds)
    speed = {way: median(values) for way, values in wall.items()}
    return {
        "name": "rollout",
        "value": round(speed[_RUNNERS] / speed[_SINGLE], 2),
        "unit": f"times the turns a second of one conversation at a time, {IN_FLIGHT} in flight, two cores",
        "details": {
            "over the bare loop": round(speed[_RUNNERS] / speed[_BARE], 3),
            "the bare loop over one at a time": round(speed[_BARE] / speed[_SINGLE], 2),
            **{f"turns a second, {way}": round(value, 1) for way, value in speed.items()},
            "prompt tokens, mean": round(float(metrics["prompt_length"]), 1),
            "answer tokens, mean": round(float(metrics["response_length"]), 1),
            "share of the time in generation": _share(metrics, "time_generate_s"),
            "share of the time in rendering prompts": _share(metrics, "time_render_s"),
            "share of the time in simulators": _share(metrics, "time_simulate_s"),
            "cores": len(os.sched_getaffinity(0)),
            "rounds": rounds,
            "compiled attention": compiled(),
        },
    }


def _measure(rounds: int) -> tuple[dict[str, list[float]], Any]:
    """Turns a second by each way, round by round; metrics of the env runners."""
    players = [ray.remote(num_cpus=1)(_Player).remote(i) for i in range(_PROCESSES)]
    wall: dict[str, list[float]] = {way: [] for way in _WAYS}
    for attempt in range(rounds + 1):
        for way in _WAYS:  # side by side, so that all meet the same machine
            start = time.perf_counter()
            turns = sum(ray.get([p.play.remote(way) for p in (players[:1] if way == _SINGLE else players)]))
            if attempt:  # the first is a warm-up
                wall[way].append(turns / (time.perf_counter() - start))
    root = MetricsLogger(root=True)
    root.aggregate(ray.get([p.metrics.remote() for p in players]))
    return wall, root.compile()


class _Player:
    """A process: its share of what is in flight, by each of the ways."""

    def __init__(self, index: int) -> None:
        own = IN_FLIGHT // _PROCESSES
        # Runners of a number above 0 are processes of their own, and set its threads.
        self._runner, self._single = (
            VLMEnvRunner(config=lake_config(slots), worker_index=index + 1, num_workers=_PROCESSES)
            for slots in (own, 1)
        )
        self._lakes = [FrozenLake(observation="text", max_steps=_STEPS) for _ in range(own)]
        self._seeds = range(index * own, (index + 1) * own)

    def play(self, way: str) -> int:
        """How many turns were played."""
        if way == _RUNNERS:
            return sum(map(len, self._runner.sample(num_episodes=len(self._lakes))))
        if way == _SINGLE:
            return sum(map(len, self._single.sample(num_episodes=_ALONE)))
        return play(
            self._runner.module.family,
            self._lakes,
            self._seeds,
            system="Task: {instruction}",  # as the template `short` has it
            parser="no_think",
            turns=TURNS,
            sampling=self._runner.config.sampling_params,
        )

    def metrics(self) -> Any:
        """Of the env runner, the warm-up included."""
        return self._runner.get_metrics()


def _share(metrics: Any, name: str) -> float:
    return round(float(metrics[name]) / float(metrics["time_sample_s"]), 3)
