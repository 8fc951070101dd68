"""Optimizers by name, over the parameters of one module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from rllib_vlm.core.muon import Muon

Optimizer = Literal["adamw", "muon"]
VALUE_HEAD = "value_head."
_TABLES = ("embed_tokens.", "lm_head.")  # rows of these belong to words: no direction in them is like another


def build_optimizers(
    parameters: Iterable[tuple[str, Tensor]],
    kind: Optimizer,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
) -> dict[str, torch.optim.Optimizer]:
    """The optimizers that together hold all parameters that need gradients, by name; "adamw" is always one.

    "muon" orthogonalises the momentum of the hidden matrices; its updates have the size of AdamW's, so that one
    learning rate does for both. Embeddings, the output layer, the value head, convolutions, gains and biases stay
    with AdamW. Decay is on matrices only. Groups of the value head have `value: True`, so that they may have a rate
    of their own.

    On CPUs AdamW's step is torch's fused one where all parameters are contiguous, in a quarter of the time of the
    default there. It leaves `_version` of the parameters as it was.

    Args:
        parameters: named parameters of the module.
        kind: of optimizer.
        lr: learning rate.
        weight_decay: decoupled, per unit of learning rate.
        betas: of AdamW.
        epsilon: of AdamW.
    """
    hidden: list[Tensor] = []
    rest: list[tuple[str, Tensor]] = []
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        table = any(t in name for t in _TABLES)
        if kind == "muon" and parameter.ndim == 2 and not name.startswith(VALUE_HEAD) and not table:
            hidden.append(parameter)
        else:
            rest.append((name, parameter))
    adamw = adamw_groups(rest, weight_decay)
    for group in adamw:
        del group["names"]
    found: dict[str, torch.optim.Optimizer] = {}
    if adamw:
        # The fused step reads memory as it lies, whatever the strides. None is torch's own choice.
        fused = True if all(p.device.type == "cpu" and p.is_contiguous() for _, p in rest) else None
        found["adamw"] = torch.optim.AdamW(adamw, lr=lr, betas=betas, eps=epsilon, fused=fused)
    if hidden:
        found["muon"] = Muon([{"params": hidden, "value": False}], lr=lr, weight_decay=weight_decay)
    return found


def adamw_groups(parameters: Iterable[tuple[str, Tensor]], weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups of named parameters: `params`, their `names`, `weight_decay`, and `value` for the value head's."""
    groups: dict[tuple[bool, bool], list[tuple[str, Tensor]]] = {}  # (value head, decays)
    for name, parameter in parameters:
        groups.setdefault((name.startswith(VALUE_HEAD), parameter.ndim >= 2), []).append((name, parameter))
    return [
        {
            "params": [parameter for _, parameter in members],
            "names": [name for name, _ in members],
            "weight_decay": weight_decay if decays else 0.0,
            "value": value,
        }
        for (value, decays), members in sorted(groups.items(), key=lambda item: (item[0][0], not item[0][1]))
    ]
