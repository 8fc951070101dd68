"""How fast one env runner plays episodes with the tiny vision model, on one thread."""

from __future__ import annotations

import time
from typing import Any

from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_vlm.algorithms.ppo import VLMPPOConfig
from rllib_vlm.env.vlm_env_runner import VLMEnvRunner

_SLOTS, _EPISODES, _TURNS = 16, 32, 8


def lake_config() -> VLMPPOConfig:
    """One picture of 84x84 a turn, answers of a few tokens, episodes that go to the turn limit or the goal."""
    config = VLMPPOConfig()
    config.environment("frozen_lake", env_config={"observation": "vision", "max_steps": 50})
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=_SLOTS, torch_threads=1)
    config.learners(torch_threads=1)
    config.prompting(parser="no_think", template="short", history="current")
    config.generation(max_new_tokens=12).simulation(max_turns=_TURNS)
    config.rl_module(model_config={"size": "tiny"})
    return config


def run() -> dict[str, Any]:
    """The headline figure is turns per second of wall clock."""
    runner = VLMEnvRunner(config=lake_config(), worker_index=0, num_workers=0)
    runner.sample(num_episodes=_SLOTS)  # warm-up
    runner.get_metrics()
    start = time.perf_counter()
    episodes = runner.sample(num_episodes=_EPISODES)
    wall_s = time.perf_counter() - start
    root = MetricsLogger(root=True)
    root.aggregate([runner.get_metrics()])
    metrics = root.compile()
    runner.stop()
    turns = sum(len(episode) for episode in episodes)
    return {
        "name": "rollout",
        "value": round(turns / wall_s, 1),
        "unit": "turns per second, one thread, one 84x84 picture a turn",
        "details": {
            "generated tokens per second": round(float(metrics["num_generated_tokens"]) / wall_s, 1),
            "prompt tokens, mean": round(float(metrics["prompt_length"]), 1),
            "answer tokens, mean": round(float(metrics["response_length"]), 1),
            "share of the time in generation": round(float(metrics["time_generate_s"]) / wall_s, 3),
            "share of the time in rendering prompts": round(float(metrics["time_render_s"]) / wall_s, 3),
            "share of the time in simulators": round(float(metrics["time_simulate_s"]) / wall_s, 3),
            "episodes": len(episodes),
            "slots": _SLOTS,
        },
    }
