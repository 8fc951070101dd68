"""Three env runners and two learners, to be placed."""

from __future__ import annotations

from tiny import tiny_config

from rllib_vlm.algorithms.ppo import VLMPPOConfig
from rllib_vlm.algorithms.vlm_config import VLMAlgorithmConfig


class EnginesConfig(VLMPPOConfig):
    """Has engines, as the configuration of a backend with engines does."""

    engines: tuple[dict[str, float], ...] = ()

    @property
    def engine_bundles(self) -> list[dict[str, float]]:
        return [dict(each) for each in self.engines]


def with_engines(c: VLMAlgorithmConfig, *engines: dict[str, float]) -> EnginesConfig:
    """`c`, with engines that ask for so much."""
    found = EnginesConfig(algo_class=c.algo_class)
    vars(found).update(vars(c))
    found.engines = engines
    return found


def config(
    placement: str = "separate", *, runner_gpus: float = 0, learner_gpus: float = 0
) -> VLMAlgorithmConfig:
    return (
        tiny_config("ppo")
        .env_runners(num_env_runners=3, num_cpus_per_env_runner=0.5, num_gpus_per_env_runner=runner_gpus)
        .learners(num_learners=2, num_cpus_per_learner=2, num_gpus_per_learner=learner_gpus)
        .resources(placement=placement)
    )
