"""A family's model as an engine is given it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from torch import Tensor, nn

from rllib_vlm.backends.vllm.messages import PolicyWeights
from rllib_vlm.models.adapters import merged_state
from rllib_vlm.models.base import VLMFamily


def export_policy(
    family: VLMFamily, *, version: int, files: Mapping[str, bytes] | None = None
) -> PolicyWeights:
    """Everything an engine needs to be this policy; the weights lie in Ray's object store.

    Args:
        family: of the model.
        version: of its weights.
        files: those of an earlier export, which never change.
    """
    if files is None:
        files = _description(family)
    own, ties = own_weights(family.model)
    tensors = {name: _portable(tensor) for name, tensor in own.items()}
    return PolicyWeights(version=version, files=files, tensors=ray.put(tensors), ties=ties)


def _description(family: VLMFamily) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        family.save_description(Path(folder))
        return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}


def own_weights(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights with adapters merged in, each once, and which names share another's (input and output embeddings)."""
    found: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    names: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, tensor in merged_state(model).items():
        first = names.setdefault((tensor.data_ptr(), tuple(tensor.shape)), name)
        if first == name:
            found[name] = tensor.detach()
        else:
            ties[name] = first
    return found, ties


def _portable(tensor: Tensor) -> Any:
    """As NumPy, which Ray shares without copies; types NumPy lacks (bfloat16) stay tensors."""
    tensor = tensor.cpu()
    try:
        return tensor.numpy()
    except TypeError:
        return tensor
