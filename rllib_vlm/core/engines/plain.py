"""Plain torch: every learner holds all of everything, and gradients are summed once per step."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rllib_vlm.core.engines.base import EngineSettings, Verdict
from rllib_vlm.core.engines.sharded_adamw import MASTER
from rllib_vlm.core.optimizers import build_optimizers


class PlainEngine:
    """Modules are not wrapped for data-parallel training.

    Gradients are exchanged once per optimizer step, after accumulation, which is exact for any number of micro-batches
    and for parameters a batch never touched (the vision tower in a step of text).
    """

    lockstep = False

    def __init__(
        self, module: nn.Module, settings: EngineSettings, *, device: torch.device, rank: int, world: int
    ) -> None:
        self._module = module
        self._device = device
        self._world = world
        self._bound = settings.grad_clip or math.inf
        self.optimizers: dict[str, torch.optim.Optimizer] = build_optimizers(
            module.named_parameters(),
            settings.optimizer,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            betas=settings.betas,
            epsilon=settings.epsilon,
        )

    @property
    def _parameters(self) -> list[Tensor]:
        """All that is trained, in the same order on every learner."""
        return [p for o in self.optimizers.values() for group in o.param_groups for p in group["params"]]

    def zero_grad(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        if loss.requires_grad:  # a piece may hold nothing that any active term reads
            loss.backward()

    def step(self, allowed: Verdict) -> float:
        if self._world > 1:
            self._exchange_gradients()
        parameters = [p for p in self._parameters if p.grad is not None]
        norm = float(nn.utils.clip_grad_norm_(parameters, self._bound)) if parameters else 0.0
        if allowed(norm) and math.isfinite(norm):
            for optimizer in self.optimizers.values():
                optimizer.step()
            # Fused steps do not count themselves, and by these counts a sampler beside the learner knows new weights.
            torch.autograd.graph.increment_version(parameters)
        return norm

    def _exchange_gradients(self) -> None:
        """Sums gradients over learners: every one of them divided by the same global normaliser."""
        parameters = self._parameters
        touched = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
        touched = touched.to(self._device)
        dist.all_reduce(touched)
        shared = [p for p, count in zip(parameters, touched.tolist(), strict=True) if count]
        for p in shared:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if shared:
            flat = torch.cat([p.grad.flatten().float() for p in shared])  # type: ignore[union-attr]
            dist.all_reduce(flat)
            for p, piece in zip(shared, flat.split([p.numel() for p in shared]), strict=True):
                assert p.grad is not None
                p.grad.copy_(piece.view_as(p))

    def set_rates(self, lr: float, value_lr: float | None) -> None:
        set_rates([g for o in self.optimizers.values() for g in o.param_groups], lr, value_lr)

    def optimizer_states(self) -> dict[str, dict[str, Any]]:
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_optimizer_states(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        for name, optimizer in self.optimizers.items():
            if name in states:
                saved = dict(states[name])
                saved["state"] = {i: _own(state) for i, state in saved["state"].items()}
                # How a step is computed is this device's matter, not the checkpoint's.
                own = {
                    key: optimizer.defaults[key] for key in ("fused", "foreach") if key in optimizer.defaults
                }
                saved["param_groups"] = [{**group, **own} for group in saved["param_groups"]]
                optimizer.load_state_dict(saved)

    def collect(self) -> None:
        """Everything is here already."""

    def release(self) -> None:
        """Nothing was collected."""

    def share_weights(self) -> None:
        """They are the module's."""

    def whole_weights(self) -> dict[str, Tensor]:
        return dict(self._module.state_dict())

    def snapshot(self) -> Any:
        weights = {name: tensor.detach().clone() for name, tensor in self._module.state_dict().items()}
        return weights, copy.deepcopy(self.optimizer_states())

    def go_back(self, snapshot: Any) -> None:
        weights, states = snapshot
        self._module.load_state_dict(weights)
        self.load_optimizer_states(states)


def _own(state: Mapping[str, Any]) -> dict[str, Any]:
    """Without what only other engines have use for; the module's own weights are as precise as they will get."""
    return {key: value for key, value in state.items() if key != MASTER}


def set_rates(groups: list[dict[str, Any]], lr: float, value_lr: float | None) -> None:
    """Learning rates of parameter groups, in place."""
    for group in groups:
        group["lr"] = value_lr if group["value"] and value_lr is not None else lr
