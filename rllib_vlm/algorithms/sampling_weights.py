"""Weights that are to sample and no longer the learner's: kept while they are, and in checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ray
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rllib_vlm.core.rl_module import FROZEN, as_tensors
from rllib_vlm.env.weights import FrozenWeights

FILE = "sampler.safetensors"  # in a checkpoint
_VERSION = "version"


@dataclass(frozen=True, slots=True)
class SamplingWeights:
    """What learns, of one version, in Ray's object store."""

    ref: ray.ObjectRef  # {name: array}
    version: int

    def state(self, frozen: FrozenWeights | None) -> dict[str, Any]:
        """For `VLMEnvRunner.set_state`; `frozen` says where the other weights are."""
        return {COMPONENT_RL_MODULE: self.ref, WEIGHTS_SEQ_NO: self.version, FROZEN: frozen}

    def save(self, checkpoint: Path) -> None:
        """Writes them into a checkpoint.

        Raises:
            OSError: the disk is full or fails.
        """
        tensors: dict[str, Tensor] = {}
        seen: set[int] = set()
        for name, tensor in as_tensors(ray.get(self.ref)).items():
            # Two names of one matrix (tied embeddings) are two tensors in the file, each with memory of its own.
            tensors[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
            seen.add(tensor.data_ptr())
        try:
            save_file(tensors, checkpoint / FILE, metadata={_VERSION: str(self.version)})
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(str(error)) from error

    @classmethod
    def load(cls, checkpoint: Path) -> Self | None:
        """Those of a checkpoint, if it has any."""
        if not (checkpoint / FILE).is_file():
            return None
        with safe_open(checkpoint / FILE, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
            return cls(ray.put(tensors), int(file.metadata()[_VERSION]))
