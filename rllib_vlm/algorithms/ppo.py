"""PPO over the tokens of multi-turn episodes."""

from __future__ import annotations

from typing import Any

from ray.rllib.utils.annotations import override

from rllib_vlm.algorithms.vlm_algorithm import VLMAlgorithm
from rllib_vlm.algorithms.vlm_config import VLMAlgorithmConfig


class VLMPPOConfig(VLMAlgorithmConfig):
    """Defaults for proximal policy optimisation with a critic and token-level GAE.

    Source: PPO (arXiv 1707.06347), GAE (arXiv 1506.02438).
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or VLMPPO)
        self.credit = "gae"
        self.credit_options = {"gamma": 1.0, "lam": 0.95}
        self.group_size = 1
        self.groups_per_update = 64
        self.value_loss_coeff = 0.5
        self.normalize_advantages = True
        self.num_epochs = 2
        self.minibatch_size = 64


class VLMPPO(VLMAlgorithm):
    """See `VLMPPOConfig`."""

    @classmethod
    @override(VLMAlgorithm)
    def get_default_config(cls) -> Any:
        return VLMPPOConfig()
