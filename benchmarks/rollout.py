"""Turns a second with 64 conversations in flight, beside one at a time and beside a bare loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from benchmarks._arguments import numbers
from benchmarks._bare_loop import play
from rllib_vlm.algorithms.ppo import VLMPPOConfig
from rllib_vlm.env.vlm_env_runner import VLMEnvRunner
from rllib_vlm.sims.frozen_lake import FrozenLake

IN_FLIGHT, TURNS, _ALONE, _ROUNDS = 64, 8, 2, 5
_STEPS = 50  # of the lake: episodes go to the limit of turns, or into a hole, or to the goal


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
    """The headline figure is the runner's turns a second over those of one conversation at a time."""
    rounds = numbers("rollout", arguments, {"rounds": _ROUNDS})["rounds"]
    torch.set_num_threads(1)
    runner = VLMEnvRunner(config=lake_config(IN_FLIGHT), worker_index=0, num_workers=0)
    single = VLMEnvRunner(config=lake_config(1), worker_index=0, num_workers=0)
    lakes = [FrozenLake(observation="text", max_steps=_STEPS) for _ in range(IN_FLIGHT)]
    sampling = runner.config.sampling_params

    def bare() -> int:
        return play(
            runner.module.family,
            lakes,
            range(IN_FLIGHT),
            system="Task: {instruction}",  # as the template `short` has it
            parser="no_think",
            turns=TURNS,
            sampling=sampling,
        )

    ways: dict[str, Callable[[], int]] = {
        "env runner": lambda: sum(map(len, runner.sample(num_episodes=IN_FLIGHT))),
        "one at a time": lambda: sum(map(len, single.sample(num_episodes=_ALONE))),
        "bare loop": bare,
    }
    for way in ways.values():
        way()  # warm-up
    runner.get_metrics()
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():  # side by side, so that all meet the same machine
            start, begin = time.perf_counter(), time.process_time()
            turns = way()
            wall[name].append(turns / (time.perf_counter() - start))
            cpu[name].append(turns / (time.process_time() - begin))
    root = MetricsLogger(root=True)
    root.aggregate([runner.get_metrics()])
    metrics = root.compile()
    for each in (runner, single):
        each.stop()
    speed = {name: median(values) for name, values in wall.items()}
    worked = {name: median(values) for name, values in cpu.items()}
    return {
        "name": "rollout",
        "value": round(speed["env runner"] / speed["one at a time"], 2),
        "unit": f"times the turns a second of one conversation at a time, {IN_FLIGHT} in flight, one thread",
        "details": {
            "over the bare loop": round(speed["env runner"] / speed["bare loop"], 3),
            "over one at a time, processor time": round(worked["env runner"] / worked["one at a time"], 2),
            "over the bare loop, processor time": round(worked["env runner"] / worked["bare loop"], 3),
            **{f"turns a second, {name}": round(value, 1) for name, value in speed.items()},
            **{f"turns a second of processor time, {name}": round(v, 1) for name, v in worked.items()},
            "prompt tokens, mean": round(float(metrics["prompt_length"]), 1),
            "answer tokens, mean": round(float(metrics["response_length"]), 1),
            "share of the time in generation": _share(metrics, "time_generate_s"),
            "share of the time in rendering prompts": _share(metrics, "time_render_s"),
            "share of the time in simulators": _share(metrics, "time_simulate_s"),
            "rounds": rounds,
        },
    }


def _share(metrics: Any, name: str) -> float:
    return round(float(metrics[name]) / float(metrics["time_sample_s"]), 3)
