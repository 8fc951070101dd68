"""The smallest real agent: a one-layer Qwen2.5-VL on a 3x3 frozen lake."""

from __future__ import annotations

from typing import Any

from rllib_vlm.algorithms.grpo import VLMGRPOConfig
from rllib_vlm.algorithms.ppo import VLMPPOConfig
from rllib_vlm.algorithms.sft import VLMSFTConfig
from rllib_vlm.algorithms.vlm_config import VLMAlgorithmConfig

CONFIGS: dict[str, type[VLMAlgorithmConfig]] = {
    "ppo": VLMPPOConfig,
    "grpo": VLMGRPOConfig,
    "sft": VLMSFTConfig,
}

MODEL = {
    "size": "tiny",
    "hidden_size": 32,
    "num_layers": 1,
    "vision_hidden": 32,
    "vision_depth": 1,
    "vocab_size": 768,
    "tokenizer_words": ["left", "right", "up", "down"],
}


def tiny_config(name: str = "ppo", *, observation: str = "text", **lake: Any) -> VLMAlgorithmConfig:
    """One env runner in this process, no warm start, eight episodes an update."""
    return (
        CONFIGS[name]()
        .environment(
            "frozen_lake",
            env_config={"size": 3, "observation": observation, "max_steps": 4, "image_size": 28, **lake},
        )
        .env_runners(num_env_runners=0, num_envs_per_env_runner=4)
        .learners(torch_threads=1)
        .prompting(template="bare", observation=observation, invalid_penalty=0.1)
        .generation(max_new_tokens=5)
        .simulation(max_turns=4)
        .rl_module(model_config=dict(MODEL))
        .training(
            lr=1e-3,
            groups_per_update=8 if name == "ppo" else 2,
            group_size=1 if name == "ppo" else 4,
            minibatch_size=None,
        )
        .warm_start(updates=2 if name == "sft" else 0, episodes_per_update=6, minibatch_size=8)
        .evaluation(evaluation_duration=5, evaluation_at=())
    )
