"""Optimizers by name, over the parameters of one module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

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

    "muon" (Jordan et al., kellerjordan.github.io/posts/muon) orthogonalises the momentum of the hidden matrices;
    its updates are scaled to the size of AdamW's (Liu et al., arXiv 2502.16982), so that one learning rate
    does for both. Embeddings, the output layer, the value head, convolutions, gains and biases stay with AdamW.
    Decay is on matrices only. Groups of the value head have `value: True`, so that they may have a rate of their own.

    Args:
        parameters: named parameters of the module.
        kind: of optimizer.
        lr: learning rate.
        weight_decay: decoupled, per unit of learning rate.
        betas: of AdamW.
        epsilon: of AdamW.
    """
    hidden: list[Tensor] = []
    groups: dict[tuple[bool, bool], list[Tensor]] = {}  # (value head, decays)
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        value = name.startswith(VALUE_HEAD)
        if kind == "muon" and parameter.ndim == 2 and not value and not any(t in name for t in _TABLES):
            hidden.append(parameter)
        else:
            groups.setdefault((value, parameter.ndim >= 2), []).append(parameter)
    adamw: list[dict[str, Any]] = [
        {"params": members, "weight_decay": weight_decay if decays else 0.0, "value": value}
        for (value, decays), members in sorted(groups.items(), key=lambda item: (item[0][0], not item[0][1]))
    ]
    found: dict[str, torch.optim.Optimizer] = {}
    if adamw:
        found["adamw"] = torch.optim.AdamW(adamw, lr=lr, betas=betas, eps=epsilon)
    if hidden:
        found["muon"] = torch.optim.Muon(
            [{"params": hidden, "value": False}],
            lr=lr,
            weight_decay=weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
    return found
