"""GRPO: groups of episodes of one task, no critic."""

from __future__ import annotations

from typing import Any

from ray.rllib.utils.annotations import override

from rllib_vlm.algorithms.vlm_algorithm import VLMAlgorithm
from rllib_vlm.algorithms.vlm_config import VLMAlgorithmConfig


class VLMGRPOConfig(VLMAlgorithmConfig):
    """Defaults for group-relative policy optimisation, with DAPO's clip-higher and token mean.

    Source: DeepSeekMath (arXiv 2402.03300), DAPO (arXiv 2503.14476).
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or VLMGRPO)
        self.credit = "grpo"
        self.group_size = 8
        self.groups_per_update = 8
        self.clip_low = 0.2
        self.clip_high = 0.28
        self.num_epochs = 1
        self.minibatch_size = None
        self.drop_uninformative = True


class VLMGRPO(VLMAlgorithm):
    """See `VLMGRPOConfig`."""

    @classmethod
    @override(VLMAlgorithm)
    def get_default_config(cls) -> Any:
        return VLMGRPOConfig()
