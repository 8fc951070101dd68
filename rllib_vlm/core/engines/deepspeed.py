"""DeepSpeed: weights, gradients and optimizer state in parts over the learners (ZeRO), or offloaded to the CPU.

What it stands on is DeepSpeed 0.19; tests/integration/test_zero.py holds that to what plain torch learns.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rllib_vlm.core.engines.base import EngineSettings, Verdict
from rllib_vlm.core.engines.plain import set_rates
from rllib_vlm.core.engines.sharded_adamw import MASTER, Fragment, ShardedAdamW
from rllib_vlm.core.optimizers import adamw_groups
from rllib_vlm.errors import CheckpointError, MissingExtraError

_BUCKET = 500_000_000  # elements sent at a time, DeepSpeed's own; fewer where the model has fewer
_ALIGNED = 1024  # buckets are a multiple of this many
ADAMW = "adamw"


class DeepSpeedEngine:
    """One step is one of DeepSpeed's; clipping is DeepSpeed's, AdamW is torch's (`ShardedAdamW`), so nothing compiles.

    Losses carry their normaliser over micro-batches and learners. DeepSpeed means to average over both: each
    micro-batch is passed on unscaled (accumulation of 1, its boundary set by hand), and times the number of learners.
    """

    lockstep = True

    def __init__(
        self, module: nn.Module, settings: EngineSettings, *, device: torch.device, rank: int, world: int
    ) -> None:
        self._module: Any = module
        self._device, self._rank, self._world = device, rank, world
        self._stage = settings.zero_stage
        self.whole = self._stage < 3
        self._low = next(p for p in module.parameters()).dtype == torch.bfloat16
        self._collected: dict[str, Any] | None = None
        self._shared: dict[str, Tensor] | None = None
        self._trained: dict[str, Any] = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._shapes = {name: p.shape for name, p in self._trained.items()}
        self._touched: set[str] = set()
        for name, parameter in self._trained.items():
            parameter.register_hook(_Note(self._touched, name))
        self.optimizer = ShardedAdamW(
            adamw_groups(self._trained.items(), settings.weight_decay),
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.epsilon,
        )
        self.optimizers: dict[str, torch.optim.Optimizer] = {ADAMW: self.optimizer}
        self._bound = settings.grad_clip or 0.0
        self._passes = 0
        self._entry = _Entry(module)
        self._engine: Any = self._start(settings)
        self._zero: Any = self._engine.optimizer
        self.optimizer.lay_out(
            list(self._fragments()),
            sharded=world > 1 and self._zero is not self.optimizer and self._stage > 0,
        )
        module.store = self  # type: ignore[assignment]
        self._forget()
        self.share_weights()

    def _start(self, settings: EngineSettings) -> Any:
        deepspeed = _deepspeed(self._device)
        _join(self._device, self._rank, self._world)
        deepspeed.init_distributed(
            dist_backend=dist.get_backend(), rank=self._rank, world_size=self._world, auto_mpi_discovery=False
        )
        engine, _, _, _ = deepspeed.initialize(
            model=self._entry, optimizer=self.optimizer, config=self._configuration(settings)
        )
        return engine

    def _configuration(self, settings: EngineSettings) -> dict[str, Any]:
        elements = sum(p.numel() for p in self._entry.parameters())
        bucket = min(_BUCKET, elements + -elements % _ALIGNED)
        own: dict[str, Any] = {
            "train_batch_size": self._world,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            # Without ZeRO and in float32 DeepSpeed keeps the norm to itself.
            "gradient_clipping": 0.0 if self._clips_here else self._bound,
            "zero_optimization": {
                "stage": self._stage,
                "reduce_bucket_size": bucket,
                "allgather_bucket_size": bucket,
            },
            "bf16": {"enabled": self._low, "check_grad_overflow": True},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 1 << 60,
        }
        if settings.offload_optimizer == "cpu":
            pinned = self._device.type == "cuda"
            own["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
        if self._low and not self._stage:
            own["data_types"] = {"grad_accum_dtype": "bf16"}  # all that DeepSpeed does without ZeRO
        return _merged(own, settings.options)

    @property
    def _clips_here(self) -> bool:
        return self._stage == 0 and not self._low

    # Where parameters lie.

    def _fragments(self) -> Iterator[Fragment]:
        if self._clips_here:
            for name, p in self._trained.items():
                yield Fragment(name, p, 0, 0, p.numel())
        elif self._stage == 0:
            for low, high in zip(self._zero.fp16_groups, self._zero.fp32_groups, strict=True):
                for p, master in zip(low, high, strict=True):
                    yield Fragment(self._name(p), master, 0, 0, p.numel())
        elif self._stage == 3:
            for name, p in self._trained.items():
                part: Any = p  # DeepSpeed's attributes
                group, start, size = self._zero.grad_position[self._zero.get_param_id(p)]
                offset = part.partition_numel() * self._rank
                held = max(0, min(size, part.ds_numel - offset))  # the last parts end in padding
                yield Fragment(name, self._zero.fp32_partitioned_groups_flat[group], start, offset, held)
        else:
            flats = getattr(self._zero, "single_partition_of_fp32_groups", None)
            if flats is None:  # stage 1 in bfloat16
                flats = self._zero.fp32_groups_flat_partition
            for name, p in self._trained.items():
                mapping = p._hp_mapping  # noqa: SLF001
                if mapping is not None:  # some of it is this learner's
                    high, low = mapping.hp_fragment_address, mapping.lp_fragment_address
                    flat = flats[mapping.param_group_index]
                    yield Fragment(name, flat, high.start, low.start, high.numel)

    def _name(self, parameter: Tensor) -> str:
        return next(name for name, p in self._trained.items() if p is parameter)

    # Passes and steps.

    def run(self, read: Callable[..., Any], batch: Any, **kwargs: Any) -> Any:
        """`read(batch, **kwargs)`, of the module's, as a forward pass of DeepSpeed's."""
        if torch.is_grad_enabled():
            with self._entry.doing(read, kwargs):
                return self._engine(batch)
        if self._stage == 3:
            with self._entry.doing(read, kwargs):
                return self._entry(batch)
        return read(batch, **kwargs)

    def zero_grad(self) -> None:
        self._forget()

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self._passes += 1
        # Read by the backward pass, so that it need not be known in the forward pass.
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self._world, scale_wrt_gas=False)

    def step(self, allowed: Verdict) -> float:
        if not self._passes:  # nobody had anything to learn from
            allowed(0.0)
            return 0.0
        norm = math.inf

        def ask() -> bool:
            nonlocal norm
            norm = self._norm()
            return allowed(norm) and math.isfinite(norm)

        self.optimizer.begin(self._touched_anywhere(), ask)
        self._engine.step()
        if self.optimizer.verdict is None:  # DeepSpeed left the step out by itself: its norm is not finite
            allowed(norm)
        self._forget()
        return norm

    def _norm(self) -> float:
        if self._clips_here:
            parameters = [p for p in self._trained.values() if p.grad is not None]
            return float(nn.utils.clip_grad_norm_(parameters, self._bound or math.inf))
        norm = float(self._engine.optimizer._global_grad_norm)  # noqa: SLF001
        return norm if norm >= 0.0 else math.inf  # DeepSpeed's -1 is a norm that is not finite

    def _touched_anywhere(self) -> set[str]:
        names = list(self._trained)
        touched = torch.tensor([name in self._touched for name in names], dtype=torch.int32)
        if self._world > 1:
            touched = touched.to(self._device)
            dist.all_reduce(touched)
        return {name for name, count in zip(names, touched.tolist(), strict=True) if count}

    def _forget(self) -> None:
        """Gradients of the last step, those too that DeepSpeed would take for the next one's.

        Where a pass does not touch a parameter, its buffers keep what an earlier step left in them.
        """
        self._passes = 0
        self._touched.clear()
        zero = self._zero
        if self._clips_here or not hasattr(zero, "zero_grad"):
            self._engine.zero_grad()
        else:
            zero.zero_grad(set_to_none=True)
        if getattr(zero, "grad_partitions_flat_buffer", None) is not None:
            zero.grad_partitions_flat_buffer.zero_()
        if getattr(zero, "norm_for_param_grads", None):
            zero.norm_for_param_grads.clear()
        if getattr(zero, "cpu_offload", False) or getattr(zero, "offload_optimizer", False):
            for group in zero.optimizer.param_groups:
                for flat in group["params"]:
                    if flat.grad is not None:
                        flat.grad.zero_()
            for flat in getattr(zero, "fp32_partitioned_groups_flat", ()):
                if flat.grad is not None:
                    flat.grad.zero_()

    def set_rates(self, lr: float, value_lr: float | None) -> None:
        set_rates(self.optimizer.param_groups, lr, value_lr)

    # Optimizer state.

    def collect(self) -> None:
        self._collected = self.optimizer.whole_state(self._device, masters=self._low, keep=self._rank == 0)

    def release(self) -> None:
        self._collected = None

    def optimizer_states(self) -> dict[str, dict[str, Any]]:
        if self._collected is not None:
            return {ADAMW: self._collected}
        if self._world > 1:
            raise CheckpointError(
                "the optimizer's state lies in parts on several learners: save with Algorithm.save_to_path, or have "
                "all learners call Learner.collect before the first one gives its state"
            )
        state = self.optimizer.whole_state(self._device, masters=self._low, keep=True)
        assert state is not None
        return {ADAMW: state}

    def load_optimizer_states(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        if ADAMW in states:
            self.optimizer.load_whole_state(states[ADAMW])

    # Weights.

    def whole_weights(self) -> dict[str, Tensor]:
        return self._whole(keep=True)

    def share_weights(self) -> None:
        if self._stage == 3:
            found = self._whole(keep=self._rank == 0)
            self._shared = found if self._rank == 0 else None

    def weights(self) -> Mapping[str, Tensor]:
        """All weights, whole, as after the last update.

        Raises:
            CheckpointError: only the first learner has them.
        """
        if self._stage != 3:
            return self._module.state_dict()
        if self._shared is None:
            raise CheckpointError("whole weights are with the first learner alone (ZeRO stage 3)")
        return self._shared

    def _whole(self, *, keep: bool) -> dict[str, Tensor]:
        """As the module's state, on the CPU with stage 3. All learners take part, who keeps it or not."""
        if self._stage != 3:
            return dict(self._module.state_dict())
        gathered = _zero().GatheredParameters
        known = self._shared or {}
        masters = self.optimizer.gather(MASTER, self._device, keep=keep)
        found: dict[str, Tensor] = {}
        first = {id(p): name for name, p in self._trained.items()}  # tied weights have several names
        for name, tensor in self._module.state_dict(keep_vars=True).items():
            if not hasattr(tensor, "ds_id"):  # a buffer
                if keep:
                    found[name] = tensor.detach().cpu().clone()
            elif id(tensor) in first:
                if keep:
                    found[name] = masters[first[id(tensor)]].to(tensor.dtype)
            else:
                with gathered([tensor]):
                    if keep:
                        own = known.get(name)
                        found[name] = own if own is not None else tensor.detach().cpu().clone()
        return found

    def load_weights(self, state: Mapping[str, Tensor]) -> Any:
        """Like `load_state_dict(state, strict=False)`; the optimizer's copies follow. All learners take part."""
        whole = {name: tensor.detach() for name, tensor in state.items()}
        if self._stage == 3:
            found = self._load_parts(whole)
        else:
            found = nn.Module.load_state_dict(self._module, whole, strict=False)
        if not self._clips_here:
            self.optimizer.scatter(
                MASTER, {name: whole[name].float() for name in self._trained if name in whole}
            )
        self._shared = None
        self.share_weights()
        return found

    def _load_parts(self, whole: Mapping[str, Tensor]) -> Any:
        own = self._module.state_dict(keep_vars=True)
        gathered = _zero().GatheredParameters
        for name, tensor in own.items():
            if name not in whole:
                continue
            if not hasattr(tensor, "ds_id"):
                tensor.data.copy_(whole[name])
                continue
            with gathered([tensor], modifier_rank=0), torch.no_grad():
                if self._rank == 0:
                    tensor.copy_(whole[name])
        missing = [name for name in own if name not in whole]
        return torch.nn.modules.module._IncompatibleKeys(missing, [n for n in whole if n not in own])  # noqa: SLF001

    def snapshot(self) -> Any:
        tensors = list(self._low_tensors())
        return [(t, t.clone()) for t in tensors], self.optimizer.snapshot()

    def go_back(self, snapshot: Any) -> None:
        tensors, optimizer = snapshot
        for tensor, value in tensors:
            tensor.copy_(value)
        self.optimizer.go_back(optimizer)

    def _low_tensors(self) -> Iterator[Tensor]:
        """What this learner holds of the module's own weights; with stage 3 also of the small ones it keeps whole."""
        for p in self._trained.values():
            if hasattr(p, "ds_tensor"):
                yield p.ds_tensor.data
                if p.data.numel() == p.ds_numel:
                    yield p.data
            else:
                yield p.data


class _Entry(nn.Module):
    """Through which all passes enter the module: DeepSpeed's hooks are on the root's forward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._read: Callable[..., Any] | None = None
        self._kwargs: dict[str, Any] = {}

    @contextlib.contextmanager
    def doing(self, read: Callable[..., Any], kwargs: dict[str, Any]) -> Iterator[None]:
        """What a forward pass does; not an argument of it, in which DeepSpeed looks for tensors."""
        before = self._read, self._kwargs
        self._read, self._kwargs = read, kwargs
        try:
            yield
        finally:
            self._read, self._kwargs = before

    def forward(self, batch: Any) -> Any:
        assert self._read is not None
        return self._read(batch, **self._kwargs)


class _Note:
    """A gradient's hook that only writes down whose it is."""

    def __init__(self, notes: set[str], name: str) -> None:
        self._notes, self._name = notes, name

    def __call__(self, gradient: Tensor) -> None:
        self._notes.add(self._name)


def _deepspeed(device: torch.device) -> Any:
    """The package, told to use this device and to compile nothing."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if device.type == "cuda" else "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise MissingExtraError("learners.engine deepspeed", "deepspeed") from error
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Built at first use for collectives through shared memory, which gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _zero() -> Any:
    import deepspeed

    return deepspeed.zero


def _join(device: torch.device, rank: int, world: int) -> None:
    """The process group: RLlib's where there are learner actors, else one of this process alone."""
    # Each learner sees its own GPU and no other.
    alone = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": 0, "LOCAL_SIZE": 1}
    os.environ.update({name: str(value) for name, value in alone.items()})
    if dist.is_initialized():
        return
    if "MASTER_PORT" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def _merged(own: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The user's options over ours, section by section."""
    merged = dict(own)
    for key, value in options.items():
        inner = isinstance(value, Mapping) and isinstance(own.get(key), dict)
        merged[key] = _merged(own[key], value) if inner else value
    return merged
