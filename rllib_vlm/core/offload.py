"""What learns leaves a GPU, and comes back: weights, gradients' memory, optimizers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def move(
    modules: Iterable[nn.Module], optimizers: Iterable[torch.optim.Optimizer], device: torch.device | str
) -> None:
    """Moves weights and what optimizers keep of them, in place; gradients are dropped, what was freed is given back.

    Parameters stay the objects they were, so optimizers go on with them. Numbers an optimizer keeps by themselves,
    such as its count of steps, stay where it put them.
    """
    for module in modules:
        module.zero_grad(set_to_none=True)
        module.to(device)
    for optimizer in optimizers:
        for state in optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.ndim:
                    state[name] = value.to(device)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
