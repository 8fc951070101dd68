"""The learner: named loss terms over packed token rows, accumulated in micro-batches, equal over learners.

One update, as RLlib drives it::

    episodes --learner connector--> Minibatches        one per optimizer step, the same rows however many learners
    per step: micro-batches --forward_train--> columns --LOSS_TERMS--> sum_k coefficient_k * reduce(term_k)
              gradients summed over learners -> non-finite loss or gradient? skip : clip by global norm -> optimizers

What holds weights, gradients and optimizers, and steps, is an engine (`core.engines`): plain torch, or DeepSpeed.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from pyarrow.fs import LocalFileSystem
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import ALL_MODULES
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.torch_utils import convert_to_torch_tensor
from torch import Tensor

from rllib_vlm.batching.packing import Batch, to_torch
from rllib_vlm.batching.rows import NAME, PLACE
from rllib_vlm.core.columns import VLMColumns
from rllib_vlm.core.engines import make_engine
from rllib_vlm.core.engines.base import Engine
from rllib_vlm.core.engines.lockstep import Lockstep, pieces_of
from rllib_vlm.core.heap import give_back, leave_unwritten
from rllib_vlm.core.loss_terms import LOSS_TERMS, LossSettings
from rllib_vlm.core.offload import move
from rllib_vlm.core.step_guard import StepFigures
from rllib_vlm.core.update_metrics import UpdateMetrics, metric_reduction
from rllib_vlm.core.update_plan import UpdatePlan
from rllib_vlm.losses.reduce import normalizer, reduce
from rllib_vlm.models.adapters import lora_off
from rllib_vlm.types import SamplingParams

logger = logging.getLogger(__name__)

_REFERENCE = "reference"
WRITTEN = "written"  # a file


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
        self._engine: Engine
        self.lockstep: Lockstep | None = None  # with the other learners, where the engine needs it
        leave_unwritten()
        super().build()

    @property
    def _vlm_module(self) -> Any:
        return self.module[DEFAULT_MODULE_ID].unwrapped()

    @override(TorchLearner)
    def _make_modules_ddp_if_necessary(self) -> None:
        """Learners share what they learn in the engine."""

    @override(TorchLearner)
    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """They are the engine's; RLlib is told of none, so that it steps and saves none of its own."""
        module = self.module[module_id].unwrapped()
        world, rank = 1, 0
        if self.distributed:
            world, rank = dist.get_world_size(), dist.get_rank()
            for (
                tensor
            ) in module.state_dict().values():  # random initialisation must not differ between learners
                dist.broadcast(tensor, src=0)
        settings = config.engine_settings
        self._engine = make_engine(module, settings, device=self._device, rank=rank, world=world)
        if self._engine.lockstep:
            self.lockstep = Lockstep(module.family, self._all_gather)

    @override(Learner)
    def update(self, *args: Any, plan: UpdatePlan, **kwargs: Any) -> Any:
        """Like RLlib's, told by `plan` what to optimise and how."""
        self.begin(plan)
        self._step_metrics = UpdateMetrics()
        self._engine.set_rates(plan.lr, plan.value_lr)
        self._stopped = False
        abandons = plan.guard.watches and plan.guard.action == "abandon"
        before = self._engine.snapshot() if abandons else None
        try:
            result = super().update(*args, **kwargs)
            if before is not None and self._stopped:
                self._engine.go_back(before)
            self._engine.share_weights()
        except BaseException:
            if self.distributed:  # the others wait for this learner's gradients: let them fail at once too
                dist.destroy_process_group()
            raise
        give_back()
        return result

    def begin(self, plan: UpdatePlan) -> None:
        """Takes the plan of an update, and the reference before the first step that moves the policy away from it."""
        torch.set_num_threads(self._threads())
        self._plan = plan
        if plan.needs_reference and plan.reference == "copy" and self._reference is None:
            self._reference = self._frozen_copy()

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
            "lockstep": self.lockstep,
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
        self._engine.zero_grad()
        world = dist.get_world_size() if self.distributed else 1
        pieces = pieces_of(columns, max_tokens=self.config.micro_batch_tokens, lockstep=self.lockstep)
        for piece, last in _with_last(pieces):
            tensors = {**to_torch(piece, self._device), **words}
            out = self._forward(tensors, self._plan)
            loss = self.compute_loss_for_module(
                module_id=DEFAULT_MODULE_ID, config=self.config, batch=tensors, fwd_out=out
            )
            self._engine.backward(loss, last=last)
            self._figures.loss += float(loss.detach())
            self._step_metrics.count_tokens(tensors)
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
        return list(self._engine.optimizers.values())

    def _apply(self) -> None:
        """Clips and steps; a step is left out and counted where loss or gradient is not finite or the guard objects."""
        finite = False

        def allowed(norm: float) -> bool:
            nonlocal finite
            assert self._plan is not None
            figures = self._figures.join(self._all_gather(self._figures))
            # A loss may overflow and leave its gradient finite (Huber's is bounded): what it says is then no direction.
            finite = math.isfinite(norm) and math.isfinite(figures.loss)
            objections: list[str] = []
            if self._plan.guard.watches and "policy" in self._plan.losses.active:
                objections = self._plan.guard.violations(figures, norm)
                self._step_metrics.add_objections(objections)
                self._stopped = bool(objections) and self._plan.guard.action != "skip"
            return finite and not objections

        norm = self._engine.step(allowed)
        self._step_metrics.add_gradient(norm, finite=finite)

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
            self._reference = self._frozen_copy()
            self._reference.set_state(state[_REFERENCE])

    @override(TorchLearner)
    def _get_optimizer_state(self) -> Any:
        return {
            f"{DEFAULT_MODULE_ID}_{name}": {"module_id": DEFAULT_MODULE_ID, "state": _as_arrays(state)}
            for name, state in self._engine.optimizer_states().items()
        }

    @override(TorchLearner)
    def _set_optimizer_state(self, state: Mapping[str, Any]) -> None:
        states = {}
        for name, saved in state.items():
            own = saved["state"]
            tensors = convert_to_torch_tensor(own["state"], device=self._device)
            states[name.removeprefix(f"{DEFAULT_MODULE_ID}_")] = {**own, "state": tensors}
        self._engine.load_optimizer_states(states)

    @override(Learner)
    def save_to_path(self, path: Any = None, *, filesystem: Any = None, **kwargs: Any) -> str:
        """RLlib's, with an empty file `WRITTEN` behind all the rest.

        RLlib passes over a remote learner that dies while it writes, so that only what it wrote tells. One that raises
        it takes out of service, for which a full disk is no reason: then there is no such file, and no more.

        Raises:
            OSError: the disk is full or fails, and this learner is its algorithm's own.
        """
        try:
            where: str = super().save_to_path(path, filesystem=filesystem, **kwargs)
            with (filesystem or LocalFileSystem()).open_output_stream(f"{where}/{WRITTEN}"):
                pass
        except OSError as error:
            if self.config.num_learners == 0:
                raise
            logger.error("A learner could not write its part of a checkpoint: %s", error)
            return str(path)
        return where

    def collect(self) -> None:
        """Before the first learner gives its state: what lies on several learners comes to it. All must take part."""
        self._engine.collect()

    def release(self) -> None:
        """After that."""
        self._engine.release()

    def _frozen_copy(self) -> Any:
        """The module as it is now, which does not learn. All learners take part."""
        module = self._vlm_module
        reference = module.like(self._engine.whole_weights()) if module.store else copy.deepcopy(module)
        for parameter in reference.parameters():
            parameter.requires_grad_(False)
        return reference


class _Step(SampleBatch):
    """The columns of one optimizer step, as RLlib carries batches.

    A `SampleBatch` demands columns of one length; images and counts of a packed batch have theirs per
    row too, but RLlib need not look into them.
    """

    def __init__(self, columns: Batch) -> None:
        super().__init__({"token_ids": columns["token_ids"]})
        self.columns = columns


def _as_arrays(state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state with NumPy arrays; moments of half precision, which NumPy may lack, are float32 in it.

    Back in the optimizer they have the precision of their parameters again, and lose nothing.
    """
    halves = (torch.bfloat16, torch.float16)
    moments = {
        i: {key: v.float() if getattr(v, "dtype", None) in halves else v for key, v in of.items()}
        for i, of in state["state"].items()
    }
    arrays: dict[str, Any] = convert_to_numpy({**state, "state": moments})
    return arrays


def _with_last(items: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
    """Each item, and whether it is the last; one is held while the next is made."""
    following = iter(items)
    for held in following:
        for item in following:
            yield held, False
            held = item
        yield held, True
