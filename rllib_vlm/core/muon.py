"""Muon with Newton-Schulz steps in a precision that the device is fast in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.775, 2.0315)  # of the quintic step: steepest at 0 (Jordan et al.)
STEPS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose direction is orthogonalised (Jordan et al., kellerjordan.github.io/posts/muon).

    torch's own always takes the steps in bfloat16, which a CPU without instructions for it emulates: a step of the
    example models took twenty times as long as in float32. Its state has the same form, so that checkpoints
    of either are read by the other.

    Args:
        params: groups of matrices.
        lr: learning rate; an update has the root mean square of one of AdamW, 0.2 (Liu et al., arXiv 2502.16982).
        weight_decay: decoupled, per unit of learning rate.
        momentum: of the gradients, with Nesterov's look ahead.

    Raises:
        ValueError: a parameter that is no matrix.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon is for matrices, not for a shape of {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                average = state["momentum_buffer"]
                average.lerp_(parameter.grad, 1 - momentum)
                update = orthogonalised(parameter.grad.lerp(average, momentum))
                parameter.mul_(1 - lr * group["weight_decay"])
                scale = 0.2 * math.sqrt(max(parameter.shape))
                parameter.add_(update.to(parameter.dtype), alpha=-lr * scale)
        return loss


def orthogonalised(matrix: Tensor) -> Tensor:
    """[M, N] to the [M, N] with about its singular vectors and singular values near 1.

    bfloat16 on CUDA, as in the reference; float32 elsewhere.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    x = x if wide else x.T
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T
