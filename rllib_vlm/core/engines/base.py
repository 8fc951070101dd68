"""What a learner asks of an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from rllib_vlm.core.optimizers import Optimizer

EngineKind = Literal["plain", "deepspeed"]
Offload = Literal["none", "cpu"]
# Said of a global gradient norm; true where the step may be taken.
Verdict = Callable[[float], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """`learners: {engine, zero_stage, offload_optimizer, engine_options}`, and the optimizer of `training`."""

    kind: EngineKind = "plain"
    zero_stage: int = 2
    offload_optimizer: Offload = "none"
    options: Mapping[str, Any] = field(default_factory=dict)  # of the engine's own configuration
    optimizer: Optimizer = "adamw"
    lr: float = 1e-5
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    grad_clip: float | None = None  # bound of the global norm


class Engine(Protocol):
    """Trains one module. Of several learners each has an engine; all of them call the same methods in the same order.

    A step::

        engine.zero_grad()
        for pieces of the step:
            out = module.forward_train(...)
            engine.backward(loss, last=...)     # summed over pieces and learners: losses carry their normaliser
        norm = engine.step(allowed)
    """

    optimizers: dict[str, torch.optim.Optimizer]  # by name
    lockstep: bool  # all learners must run equally many passes of the same kinds (`core.engines.lockstep`)

    def zero_grad(self) -> None:
        """Forgets gradients."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Adds the gradients of `loss`; `last` is the step's last."""

    def step(self, allowed: Verdict) -> float:
        """Clips and steps, where `allowed` says so of the global norm before clipping; gives that norm.

        `allowed` is asked once, on all learners at the same point, so that it may gather; of a norm that is not
        finite its answer makes no difference: then no step is taken.
        """

    def set_rates(self, lr: float, value_lr: float | None) -> None:
        """Learning rates, of the value head where it has its own."""

    def optimizer_states(self) -> dict[str, dict[str, Any]]:
        """State of each optimizer by its name, as torch's, of all learners together.

        Every engine gives and takes the same, so that a run may go on with another engine, another ZeRO stage or
        another number of learners. Where it lies in parts on several learners, `collect` brings it together before.

        Raises:
            CheckpointError: it lies in parts, and was not collected.
        """

    def load_optimizer_states(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Takes what `optimizer_states` gave; what the module weighs is to be loaded before."""

    def collect(self) -> None:
        """Has the first learner hold the whole optimizer state, until `release`. All learners take part."""

    def release(self) -> None:
        """Forgets what was collected."""

    def whole_weights(self) -> dict[str, Tensor]:
        """All weights of the module, whole, on every learner. All learners take part."""

    def share_weights(self) -> None:
        """After steps: the first learner has whole weights to give away. All learners take part."""

    def snapshot(self) -> Any:
        """Weights and optimizer state of this learner as they are now."""

    def go_back(self, snapshot: Any) -> None:
        """To a snapshot."""
