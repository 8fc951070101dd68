"""A family's model as an engine is given it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ray
from torch import Tensor, nn

from rllib_vlm.backends.vllm.messages import PolicyWeights
from rllib_vlm.models.adapters import merged_state
from rllib_vlm.models.base import VLMFamily


def export_policy(family: VLMFamily, *, version: int) -> PolicyWeights:
    """Everything an engine needs to be this policy; the weights lie in Ray's object store."""
    with tempfile.TemporaryDirectory() as folder:
        family.save_description(Path(folder))
        files = {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}
    tensors = {name: _portable(tensor) for name, tensor in own_weights(family.model).items()}
    return PolicyWeights(version=version, files=files, tensors=ray.put(tensors))


def own_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights with adapters merged in, each once: of tied ones (input and output embeddings) the first."""
    found: dict[str, Tensor] = {}
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, tensor in merged_state(model).items():
        place = (tensor.data_ptr(), tuple(tensor.shape))
        if place not in seen:
            seen.add(place)
            found[name] = tensor.detach()
    return found


def _portable(tensor: Tensor) -> Any:
    """As NumPy, which Ray shares without copies; types NumPy lacks (bfloat16) stay tensors."""
    tensor = tensor.cpu()
    try:
        return tensor.numpy()
    except TypeError:
        return tensor
