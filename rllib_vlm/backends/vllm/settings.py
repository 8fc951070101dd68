"""What the keys of `generation: {engine: ...}` mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import ray

from rllib_vlm.errors import ConfigErrors, did_you_mean, unlisted

Transport = Literal["auto", "files", "nccl", "ipc"]
DTypeName = Literal["float32", "bfloat16", "float16"]
# Largest gap, in nats, between an engine and the learner on the same tokens at the same weights. In float32 measured
# gaps are 2e-5; half precision rounds differently in every kernel (0.22 measured on a random bfloat16 model).
_PROBE_GAPS = {"float32": 1e-3, "bfloat16": 0.5, "float16": 0.25}


@dataclass(frozen=True, kw_only=True)
class VLLMSettings:
    """How many engines there are, what each may take of a machine, and how weights reach them."""

    count: int = 1
    num_cpus: float = 1.0  # of each engine
    num_gpus: float | None = None  # of each engine; `tensor_parallel` where the cluster has any, else 0
    torch_threads: int = 1  # CPU threads of an engine without a GPU
    tensor_parallel: int = 1  # GPUs that one engine is spread over
    dtype: DTypeName = "float32"  # the model's own in a run, unless it says otherwise
    max_model_len: int = 2048  # tokens of a prompt and its answer; a run's own is `row_tokens`
    max_num_seqs: int = 64  # answers that are sampled at the same time
    kv_cache_mib: float | None = None  # 256 without a GPU; on GPUs what `gpu_memory_share` leaves
    gpu_memory_share: float = 0.8
    block_size: int | None = None  # tokens of a cached block; 32 without a GPU, where vLLM's own is 128
    transport: Transport = "auto"
    max_probe_gap: float | None = None  # nats; see `probe_gap`
    start_deadline_s: float = 900.0  # for an engine to be up, and for a dead one to be up again
    max_turn_retries: int = 3  # times a turn is asked again whose engine died; then its episode is lost
    options: Mapping[str, Any] = field(default_factory=dict)  # further arguments of vLLM's `EngineArgs`

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> VLLMSettings:
        """From plain values.

        Raises:
            ConfigErrors: every key there is not, and every value out of its range.
        """
        known = [f.name for f in fields(cls)]
        unknown = [k for k in values if k not in known]
        errors = [f"no option {k!r}.{did_you_mean(str(k), known)} Known: {', '.join(known)}" for k in unknown]
        settings = cls(**{k: v for k, v in values.items() if k in known})
        errors += settings._problems()
        if errors:
            raise ConfigErrors("engine", errors)
        return settings

    @property
    def probe_gap(self) -> float:
        """Nats from which on an engine counts as having other weights than the learner."""
        return _PROBE_GAPS[self.dtype] if self.max_probe_gap is None else float(self.max_probe_gap)

    @property
    def gpus_per_engine(self) -> float:
        """What Ray is asked for: as many as the model is spread over, where the cluster has any at all."""
        if self.num_gpus is not None:
            return float(self.num_gpus)
        any_at_all = ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0
        return float(self.tensor_parallel) if any_at_all else 0.0

    def bundles(self) -> list[dict[str, float]]:
        """What each engine asks Ray for."""
        one = {"CPU": float(self.num_cpus), "GPU": self.gpus_per_engine}
        return [{kind: amount for kind, amount in one.items() if amount} for _ in range(self.count)]

    def _problems(self) -> list[str]:
        errors = []
        for name in ("count", "torch_threads", "tensor_parallel", "max_model_len", "max_num_seqs"):
            if not _is_number(value := getattr(self, name), whole=True) or value < 1:
                errors.append(f"{name} is {value!r}; it must be a whole number of at least 1")
        if not _is_number(self.max_turn_retries, whole=True) or self.max_turn_retries < 0:
            errors.append(
                f"max_turn_retries is {self.max_turn_retries!r}; it must be a whole number of at least 0"
            )
        if not _is_number(self.num_cpus) or self.num_cpus <= 0:
            errors.append(f"num_cpus is {self.num_cpus!r}; it must be a number above 0")
        for name in ("num_gpus", "max_probe_gap"):
            value = getattr(self, name)
            if value is not None and (not _is_number(value) or value < 0):
                errors.append(f"{name} is {value!r}; it must be a number of at least 0, or nothing")
        if self.block_size is not None and (
            not _is_number(self.block_size, whole=True) or self.block_size < 1
        ):
            errors.append(
                f"block_size is {self.block_size!r}; it must be a whole number of at least 1, or nothing"
            )
        if self.kv_cache_mib is not None and (not _is_number(self.kv_cache_mib) or self.kv_cache_mib <= 0):
            errors.append(f"kv_cache_mib is {self.kv_cache_mib!r}; it must be a number above 0, or nothing")
        if not _is_number(self.gpu_memory_share) or not 0 < self.gpu_memory_share <= 1:
            errors.append(f"gpu_memory_share is {self.gpu_memory_share!r}; it must be above 0 and at most 1")
        if not _is_number(self.start_deadline_s) or self.start_deadline_s <= 0:
            errors.append(f"start_deadline_s is {self.start_deadline_s!r}; it must be a number above 0")
        if not isinstance(self.options, Mapping):
            errors.append(f"options is {self.options!r}; it must be a mapping of vLLM's EngineArgs")
        errors += unlisted("dtype", self.dtype, get_args(DTypeName))
        errors += unlisted("transport", self.transport, get_args(Transport))
        return errors


def _is_number(value: Any, *, whole: bool = False) -> bool:
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool)
