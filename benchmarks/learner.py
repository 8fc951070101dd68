"""How fast a learner reads and learns, with the tiny vision model, on one thread."""

from __future__ import annotations

from typing import Any

from rllib_vlm.algorithms.ppo import VLMPPOConfig
from rllib_vlm.core.learner import VLMTorchLearner
from rllib_vlm.core.update_plan import UpdatePlan
from rllib_vlm.env.vlm_env_runner import VLMEnvRunner

_EPISODES, _MINIBATCH = 48, 64


def _lake_config() -> VLMPPOConfig:
    """One picture of 84x84 a turn, answers of a few tokens, episodes that go to the turn limit or the goal."""
    config = VLMPPOConfig()
    config.environment("frozen_lake", env_config={"observation": "vision", "max_steps": 50})
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=16, torch_threads=1)
    config.learners(torch_threads=1)
    config.prompting(parser="no_think", template="short", history="current")
    config.generation(max_new_tokens=12).simulation(max_turns=8)
    config.rl_module(model_config={"size": "tiny"})
    return config


def run() -> dict[str, Any]:
    """The headline figure is tokens per second, prompts included, of a PPO update with critic and entropy."""
    config = _lake_config().training(entropy_coeff=0.01)
    runner = VLMEnvRunner(config=config, worker_index=0, num_workers=0)
    spec = config.get_multi_rl_module_spec(spaces=runner.get_spaces(), inference_only=False)
    learner = VLMTorchLearner(config=config, module_spec=spec)
    learner.build()
    episodes = runner.sample(num_episodes=_EPISODES)
    runner.stop()
    plan = UpdatePlan(
        losses=config.loss_settings(), lr=1e-5, minibatch_size=_MINIBATCH, normalize_advantages=True
    )
    learner.update(episodes=episodes, plan=plan, timesteps={})  # warm-up
    metrics = learner.update(episodes=episodes, plan=plan, timesteps={})["default_policy"]
    found = {
        name: float(metrics[name].peek()) for name in ("tokens", "tokens_per_s", "prepare_s", "pad_fraction")
    }
    turns = sum(len(episode) for episode in episodes)
    seconds = found["tokens"] / found["tokens_per_s"]
    return {
        "name": "learner",
        "value": round(found["tokens_per_s"], 1),
        "unit": "tokens per second, one thread, forward and backward and optimizer",
        "details": {
            "turns per second": round(turns / seconds, 1),
            "rows, values and credit, seconds": round(found["prepare_s"], 3),
            "share of padding": round(found["pad_fraction"], 3),
            "tokens": int(found["tokens"]),
            "turns": turns,
            "turns per optimizer step": _MINIBATCH,
        },
    }
