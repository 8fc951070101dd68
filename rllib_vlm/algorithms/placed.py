"""An algorithm that reserves all its processes, starts none that cannot fit, and has who rests leave the GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.annotations import override
from ray.tune import PlacementGroupFactory

from rllib_vlm.algorithms import supply
from rllib_vlm.algorithms.dispatch import ask_learners
from rllib_vlm.algorithms.placement import Demand, demand_of

if TYPE_CHECKING:
    from rllib_vlm.algorithms.vlm_config import VLMAlgorithmConfig


class PlacedAlgorithm(Algorithm):
    """RLlib's, told by `resources` where its processes go; see `algorithms.placement`."""

    config: VLMAlgorithmConfig

    @classmethod
    def demand(cls, config: Any) -> Demand:
        """What a trial with `config` (a dict or a configuration) reserves."""
        whole: Any = cls.get_default_config().update_from_dict(config)
        whole.validate()
        whole.freeze()
        return cls._demand(whole)

    @classmethod
    def _demand(cls, config: VLMAlgorithmConfig) -> Demand:
        evaluation: Any = config.get_evaluation_config_object()
        return demand_of(
            config, evaluation if cls._should_create_evaluation_env_runners(evaluation) else None
        )

    @classmethod
    @override(Algorithm)
    def default_resource_request(cls, config: Any) -> PlacementGroupFactory:
        return cls.demand(config).request()

    @override(Algorithm)
    def setup(self, config: Any) -> None:
        if not ray.is_initialized():  # what RLlib would do next
            ray.init()
        if ray.util.get_current_placement_group() is None:  # else Tune has reserved it all
            demand = self._demand(config).without_driver()
            if demand.bundles:
                supply.ensure(demand, wait_s=config.nodes_wait_s)
        self.take_bundles()
        super().setup(config)

    def take_bundles(self) -> None:
        """Starts what has bundles of its own, before RLlib starts learners, which take any that is free."""

    # Turns on a shared GPU (placement "hybrid"). Calls are repeated freely: whoever is where it should be stays.

    def let_sample(self, group: EnvRunnerGroup) -> None:
        """Runners of `group` may use their GPUs when this returns."""
        if self.config.placement == "hybrid":
            ask_learners(self.learner_group, "rest")
            group.foreach_env_runner("wake", local_env_runner=False)

    def let_learn(self) -> None:
        """Learners may use their GPUs when this returns."""
        if self.config.placement == "hybrid":
            for group in (self.env_runner_group, self.eval_env_runner_group):
                if group is not None:
                    group.foreach_env_runner("rest", local_env_runner=False)
            ask_learners(self.learner_group, "wake")
