"""The learner: named loss terms over packed token rows, accumulated in micro-batches, equal over learners.

One update, as RLlib drives it::

    episodes --learner connector--> Minibatches        one per optimizer step, the same rows however many learners
    per step: micro-batches --forward_train--> columns --LOSS_TERMS--> sum_k coefficient_k * reduce(term_k)
              gradients summed over learners -> non-finite loss or gradient? skip : clip by global norm -> optimizers

Modules are not wrapped for data-parallel training. Gradients are exchanged once per optimizer step,
after accumulation, which is exact for any number of micro-batches and for parameters a batch never
touched (the vision tower in a step of text).
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import ALL_MODULES
from torch import Tensor

from rllib_vlm.batching.micro import micro_batches
from rllib_vlm.batching.packing import Batch, to_torch
from rllib_vlm.batching.rows import NAME, PLACE
from rllib_vlm.core.columns import VLMColumns
from rllib_vlm.core.loss_terms import LOSS_TERMS, LossSettings
from rllib_vlm.core.offload import move
from rllib_vlm.core.optimizers import build_optimizers
from rllib_vlm.core.step_guard import StepFigures
from rllib_vlm.core.update_metrics import UpdateMetrics, metric_reduction
from rllib_vlm.core.update_plan import UpdatePlan
from rllib_vlm.losses.reduce import normalizer, reduce
from rllib_vlm.models.adapters import lora_off
from rllib_vlm.types import SamplingParams

_REFERENCE = "reference"


class VLMTorchLearner(TorchLearner):
    """Knows loss terms by name; which ones, and with what coefficients, comes with each update's plan."""

    @override(TorchLearner)
    def build(self) -> None:
        self._plan: UpdatePlan | None = None
        self._step_metrics = UpdateMetrics()
        self._totals: dict[str, float] = {}  # normalisers of the present optimizer step
        self._figures = StepFigures()  # what the guard looks at, of the same
        self._stopped = False  # by the guard, for the rest of the update
        self._reference: Any = None  # a frozen copy of the module, for the KL term
        super().build()
        if self.distributed:  # random initialisation must not differ between learners
            for tensor in self._vlm_module.state_dict().values():
                dist.broadcast(tensor, src=0)

    @property
    def _vlm_module(self) -> Any:
        return self.module[DEFAULT_MODULE_ID].unwrapped()

    @override(TorchLearner)
    def _make_modules_ddp_if_necessary(self) -> None:
        """Gradients are exchanged by `_exchange_gradients`; see this module."""

    @override(TorchLearner)
    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """See `core.optimizers`: one step of the learner is one of each."""
        optimizers = build_optimizers(
            self.module[module_id].named_parameters(),
            config.optimizer_type,
            lr=config.lr,
            weight_decay=config.weight_decay,
            betas=tuple(config.adam_betas),
            epsilon=config.adam_epsilon,
        )
        for name, optimizer in optimizers.items():
            self.register_optimizer(
                module_id=module_id,
                optimizer_name=name,
                optimizer=optimizer,
                params=[p for group in optimizer.param_groups for p in group["params"]],
            )

    @override(Learner)
    def update(self, *args: Any, plan: UpdatePlan, **kwargs: Any) -> Any:
        """Like RLlib's, told by `plan` what to optimise and how."""
        self.begin(plan)
        self._step_metrics = UpdateMetrics()
        self._set_learning_rates(plan)
        self._stopped = False
        before = self._snapshot() if plan.guard.watches and plan.guard.action == "abandon" else None
        try:
            result = super().update(*args, **kwargs)
        except BaseException:
            if self.distributed:  # the others wait for this learner's gradients: let them fail at once too
                dist.destroy_process_group()
            raise
        if before is not None and self._stopped:
            self._go_back(before)
        return result

    def begin(self, plan: UpdatePlan) -> None:
        """Takes the plan of an update, and the reference before the first step that moves the policy away from it."""
        torch.set_num_threads(self._threads())
        self._plan = plan
        if plan.needs_reference and plan.reference == "copy" and self._reference is None:
            self._reference = _frozen_copy(self._vlm_module)

    def rest(self) -> None:
        """Frees the GPU for others until `wake`; weights and optimizers wait in this machine's memory."""
        self._move("cpu")

    def wake(self) -> None:
        """Takes the GPU again."""
        self._move(self._device)

    def _move(self, device: torch.device | str) -> None:
        modules = [self._vlm_module, *([] if self._reference is None else [self._reference])]
        move(modules, self._optimizers, device)

    @override(Learner)
    def _create_iterator_if_necessary(self, *, training_data: Any, **kwargs: Any) -> Iterable[Any]:
        shared_data: dict[str, Any] = {
            "plan": self._plan,
            "all_gather": self._all_gather,
            "reference": self.reference_logprobs,
        }
        episodes = [episode for episode in training_data.episodes if len(episode)]
        start = time.perf_counter()
        minibatches = self._learner_connector(
            rl_module=self.module, batch={}, episodes=episodes, shared_data=shared_data, metrics=self.metrics
        )[DEFAULT_MODULE_ID]
        self._step_metrics.gap = shared_data.get("gap")
        self._step_metrics.kl = shared_data.get("kl")
        self._step_metrics.prepare_s = time.perf_counter() - start
        return self._optimizer_steps(minibatches)

    def _optimizer_steps(self, minibatches: Iterable[tuple[Batch, int]]) -> Iterator[MultiAgentBatch]:
        for columns, turns in minibatches:
            if self._stopped:  # by the guard, on all learners alike
                return
            # RLlib logs the number of rows; the columns it never looks at go through as they are.
            yield MultiAgentBatch({DEFAULT_MODULE_ID: _Step(columns)}, env_steps=turns)

    @override(TorchLearner)
    def _update(self, batch: dict[str, Any], **kwargs: Any) -> tuple[Any, Any, Any]:
        """One optimizer step."""
        assert self._plan is not None
        start = time.perf_counter()
        columns = batch[DEFAULT_MODULE_ID].columns
        losses = self._plan.losses
        self._totals = self._normalizers(columns, losses)
        self._figures = StepFigures()
        words = self._words(columns) if "grounding" in losses.active else {}
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        world = dist.get_world_size() if self.distributed else 1
        for piece in micro_batches(columns, max_tokens=self.config.micro_batch_tokens):
            tensors = {**to_torch(piece, self._device), **words}
            out = self._forward(tensors, self._plan)
            loss = self.compute_loss_for_module(
                module_id=DEFAULT_MODULE_ID, config=self.config, batch=tensors, fwd_out=out
            )
            if loss.requires_grad:  # a piece may hold nothing that any active term reads
                loss.backward()
            self._figures.loss += float(loss.detach())
            self._step_metrics.count_tokens(tensors)
        self._exchange_gradients()
        self._apply()
        self._step_metrics.end_step(time.perf_counter() - start)
        return {}, {DEFAULT_MODULE_ID: torch.tensor(self._figures.loss * world)}, {}

    def _forward(self, tensors: dict[str, Tensor], plan: UpdatePlan) -> dict[str, Tensor]:
        active = plan.losses.active
        if active.keys() == {"value"}:  # a critic that warms up must not move the policy
            values = self._vlm_module.compute_values(tensors, head_only=True, precision=plan.precision)
            return {VLMColumns.VALUES: values}
        imitates = "imitation" in active
        with_entropy = "entropy" in active or (self.config.log_entropy and not imitates)
        out: dict[str, Tensor] = self.module[DEFAULT_MODULE_ID].forward_train(
            tensors,
            with_entropy=with_entropy,
            with_values="value" in active,
            # An expert's answer was sampled at no temperature.
            sampling=SamplingParams() if imitates else None,
            precision=plan.precision,
            with_grounding="grounding" in active,
            with_logprobs=active.keys() != {"grounding"},
        )
        if "kl" in active:
            tensors["reference_logprobs"] = self.reference_logprobs(tensors)
        return out

    @torch.no_grad()
    def reference_logprobs(self, tensors: dict[str, Tensor]) -> Tensor:
        """[B, L] of the policy that the KL is measured to."""
        assert self._plan is not None
        own = self._vlm_module
        frozen = self._plan.reference == "copy"
        with contextlib.nullcontext() if frozen else lora_off(own.model):
            out = (self._reference if frozen else own).forward_train(
                tensors, with_values=False, precision=self._plan.precision
            )
        logprobs: Tensor = out[VLMColumns.LOGPROBS]
        return logprobs

    @override(Learner)
    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Tensor], fwd_out: dict[str, Tensor]
    ) -> Tensor:
        """A micro-batch's share of the step's loss, over all learners: sum of coefficient x reduced term."""
        assert self._plan is not None
        out, tensors, losses = fwd_out, batch, self._plan.losses
        parts = []
        for name, coefficient in losses.active.items():
            term = LOSS_TERMS[name]
            column, metrics = term.column(out, tensors, losses)
            mask = tensors[term.mask]
            part = reduce(column, mask, tensors["segment_ids"], losses.reduction, self._totals[term.mask])
            parts.append(coefficient * part)
            if name == "policy":
                self._figures.add(metrics, float(mask.sum()))
            self._step_metrics.add_term(name, float(part.detach()), metrics, float(mask.sum()))
        self._step_metrics.add_columns(out, tensors, losses)
        return torch.stack(parts).sum()

    def _normalizers(self, columns: Batch, losses: LossSettings) -> dict[str, float]:
        """What each mask's sums are divided by, over all learners."""
        segments = torch.from_numpy(columns["segment_ids"])
        names = ("loss_mask", "value_mask", "grounding_mask", "referring_mask")
        parts = torch.stack(
            [
                normalizer(
                    torch.from_numpy(columns[name]),
                    segments,
                    losses.reduction,
                    constant=losses.reduction_constant,
                )
                for name in names
            ]
        ).to(self._device)
        if self.distributed:
            dist.all_reduce(parts)
        return dict(zip(names, parts.tolist(), strict=True))

    def _words(self, columns: Batch) -> dict[str, Tensor]:
        """The words of each label that occur in this step, on any learner: what its words are chosen among."""
        labels = (NAME, PLACE)
        occurs = torch.zeros(len(labels), self._vlm_module.family.vocab_size, device=self._device)
        for row, label in zip(occurs, labels, strict=True):
            found = torch.from_numpy(columns["labels"][..., label.rows]).unique().to(self._device)
            row[found[found >= 0]] = 1.0
        if self.distributed:
            dist.all_reduce(occurs)
        return {label.words: row.nonzero()[:, 0] for row, label in zip(occurs, labels, strict=True)}

    @property
    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [optimizer for _, optimizer in self.get_optimizers_for_module(DEFAULT_MODULE_ID)]

    @property
    def _parameters(self) -> list[Tensor]:
        """All that is trained, in the same order on every learner."""
        return [p for o in self._optimizers for group in o.param_groups for p in group["params"]]

    def _exchange_gradients(self) -> None:
        """Sums gradients over learners: every one of them divided by the same global normaliser."""
        if not self.distributed:
            return
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

    def _apply(self) -> None:
        """Clips and steps; a step is left out and counted where loss or gradient is not finite or the guard objects."""
        assert self._plan is not None
        parameters = [p for p in self._parameters if p.grad is not None]
        bound = self.config.grad_clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, bound)) if parameters else 0.0
        figures = self._figures.join(self._all_gather(self._figures))
        # A loss may overflow and leave its gradient finite (Huber's is bounded): what it says is then no direction.
        finite = math.isfinite(norm) and math.isfinite(figures.loss)
        objections: list[str] = []
        if self._plan.guard.watches and "policy" in self._plan.losses.active:
            objections = self._plan.guard.violations(figures, norm)
            self._step_metrics.add_objections(objections)
            self._stopped = bool(objections) and self._plan.guard.action != "skip"
        if finite and not objections:
            for optimizer in self._optimizers:
                optimizer.step()
        self._step_metrics.add_gradient(norm, finite=finite)

    def _snapshot(self) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """Weights and optimizers as they are now."""
        weights = {name: tensor.detach().clone() for name, tensor in self._vlm_module.state_dict().items()}
        return weights, [copy.deepcopy(optimizer.state_dict()) for optimizer in self._optimizers]

    def _go_back(self, snapshot: tuple[dict[str, Tensor], list[dict[str, Any]]]) -> None:
        weights, optimizers = snapshot
        self._vlm_module.load_state_dict(weights)
        for optimizer, state in zip(self._optimizers, optimizers, strict=True):
            optimizer.load_state_dict(state)

    def _set_learning_rates(self, plan: UpdatePlan) -> None:
        for group in (group for optimizer in self._optimizers for group in optimizer.param_groups):
            critic = group["value"] and plan.value_lr is not None
            group["lr"] = plan.value_lr if critic else plan.lr

    def _all_gather(self, item: Any) -> list[Any]:
        """The item of every learner, in the same order everywhere."""
        if not self.distributed:
            return [item]
        items: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(items, item)
        return items

    def _threads(self) -> int:
        """CPU threads of this learner: those asked for, or all where nobody else learns on this machine."""
        if self.config.learner_torch_threads:
            return int(self.config.learner_torch_threads)
        if self.config.num_learners == 0:
            return len(os.sched_getaffinity(0))
        cpus = self.config.num_cpus_per_learner
        return 1 if cpus == "auto" else max(1, int(cpus))

    @override(TorchLearner)
    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        assert self._plan is not None
        world = dist.get_world_size() if self.distributed else 1
        for name, value in self._step_metrics.compute(self._plan, world).items():
            how = metric_reduction(name)
            window = 1 if how == "mean" else None
            self.metrics.log_value((DEFAULT_MODULE_ID, name), value, reduce=how, window=window)
        tokens = self._step_metrics.tokens
        self.metrics.log_value((ALL_MODULES, "num_tokens_trained_lifetime"), tokens, reduce="lifetime_sum")

    @override(Learner)
    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> Any:
        state = super().get_state(components, not_components=not_components, **kwargs)
        wanted = self._check_component(_REFERENCE, components, not_components)
        if wanted and self._reference is not None:
            state[_REFERENCE] = self._reference.get_state()
        return state

    @override(Learner)
    def set_state(self, state: Any) -> None:
        super().set_state(state)
        if _REFERENCE in state:
            self._reference = _frozen_copy(self._vlm_module)
            self._reference.set_state(state[_REFERENCE])


class _Step(SampleBatch):
    """The columns of one optimizer step, as RLlib carries batches.

    A `SampleBatch` demands columns of one length; images and counts of a packed batch have theirs per
    row too, but RLlib need not look into them.
    """

    def __init__(self, columns: Batch) -> None:
        super().__init__({"token_ids": columns["token_ids"]})
        self.columns = columns


def _frozen_copy(module: Any) -> Any:
    reference = copy.deepcopy(module)
    for parameter in reference.parameters():
        parameter.requires_grad_(False)
    return reference
