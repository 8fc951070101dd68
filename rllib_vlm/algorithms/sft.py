"""Supervised fine-tuning: the warm start of the other algorithms, on its own."""

from __future__ import annotations

from typing import Any

from ray.rllib.utils.annotations import override

from rllib_vlm.algorithms.vlm_algorithm import VLMAlgorithm
from rllib_vlm.algorithms.vlm_config import VLMAlgorithmConfig


class VLMSFTConfig(VLMAlgorithmConfig):
    """Imitation only: `warm_start` says of what and how long, and the run ends when it does."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or VLMSFT)
        self.credit = "grpo"  # no critic; nothing is credited
        self.warm_start_updates = 100
        self.total_updates = 0
        self.evaluation_at = ("final",)


class VLMSFT(VLMAlgorithm):
    """See `VLMSFTConfig`."""

    @classmethod
    @override(VLMAlgorithm)
    def get_default_config(cls) -> Any:
        return VLMSFTConfig()
