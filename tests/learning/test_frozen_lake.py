"""Reinforcement learning really learns: a barely warmed-up model on six small lakes, in about a minute."""

from __future__ import annotations

from statistics import fmean

import pytest
from tiny import MODEL, tiny_config

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.learning]


@pytest.mark.timeout(600)
def test_success_rises_within_30_updates():
    config = tiny_config("grpo", max_steps=6)
    config.simulation(max_turns=6, num_task_seeds=6).generation(max_new_tokens=6)
    config.rl_module(model_config={**MODEL, "hidden_size": 64, "num_layers": 2, "rope_theta": 100.0})
    config.env_runners(num_envs_per_env_runner=32)
    config.warm_start(updates=6, episodes_per_update=48, minibatch_size=32, lr=2e-3)
    config.training(
        lr=2e-4, minibatch_size=96, num_epochs=2, total_updates=30, groups_per_update=6, group_size=16
    )
    algorithm = config.build_algo()
    successes: list[float] = []
    try:
        while algorithm.run_state.phase != "finished":
            result = algorithm.train()
            if result["num_updates"]:
                successes.append(float(result["env_runners"]["success_rate"]))
                assert result["learners"]["default_policy"].get("log_ratio_max", 0.0) < 1e-3
    finally:
        algorithm.stop()
    assert len(successes) == 30
    # 480 episodes on each side: by chance alone a difference of 0.1 is more than three standard deviations off.
    assert fmean(successes[-5:]) > fmean(successes[:5]) + 0.1
