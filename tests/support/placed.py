"""Three env runners and two learners, to be placed."""

from __future__ import annotations

from tiny import tiny_config

from rllib_vlm.algorithms.vlm_config import VLMAlgorithmConfig


def config(
    placement: str = "separate", *, runner_gpus: float = 0, learner_gpus: float = 0
) -> VLMAlgorithmConfig:
    return (
        tiny_config("ppo")
        .env_runners(num_env_runners=3, num_cpus_per_env_runner=0.5, num_gpus_per_env_runner=runner_gpus)
        .learners(num_learners=2, num_cpus_per_learner=2, num_gpus_per_learner=learner_gpus)
        .resources(placement=placement)
    )
