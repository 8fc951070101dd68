"""Weights from learner to engine past files, on GPUs, by vLLM's own weight transfer: NCCL, or CUDA IPC on one GPU.

Not run on this project's machines, which have no GPU: written from the source of vLLM 0.32
(`vllm/distributed/weight_transfer`). `generation: {engine: {transport: files}}` leaves it out; the probe after each
update says whether what arrived is what was sent.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.actor import ActorHandle
from torch import Tensor, nn

from rllib_vlm.backends.vllm.export import own_weights
from rllib_vlm.backends.vllm.settings import Transport

_HELD = "_vllm_transfer"  # attribute of a learner: vLLM's trainer side, once it is connected


def choose_transport(wanted: Transport, own: Sequence[str], learners: Sequence[str]) -> str:
    """How weights reach an engine on the GPUs `own` from learners on the GPUs `learners` (their unique ids).

    CUDA IPC shares memory of one GPU; NCCL refuses two processes on one. Where neither fits, or there is no GPU,
    weights go through files in shared memory.
    """
    if wanted != "auto":
        return wanted
    if not own or not learners or find_spec("vllm.distributed.weight_transfer") is None:
        return "files"
    shared = set(own) & set(learners)
    if not shared:
        return "nccl"
    return "ipc" if shared == set(own) else "files"


def device_ids() -> list[str]:
    """The GPUs this process may use, by their unique ids; none without CUDA."""
    return [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]


def send_weights(
    holder: Any,
    model: nn.Module,
    *,
    engines: Sequence[ActorHandle],
    transport: str,
    workers_per_engine: int,
    version: int,
    anew: bool,
) -> None:
    """Sends the weights of a learner's model to all engines; every learner calls this at the same time.

    Args:
        holder: keeps the connection from one update to the next.
        model: whose weights are sent, adapters merged in.
        engines: that listen.
        transport: "nccl" or "ipc".
        workers_per_engine: GPUs of each engine.
        version: of the weights.
        anew: an engine started since the last time, so the connection is of no use any more.
    """
    sender = None if anew else getattr(holder, _HELD, None)
    if sender is None:
        client = _Engines(engines, workers_per_engine)
        sender = _connect(transport, client, model)
        setattr(holder, _HELD, sender)
    sender.client.version = version
    sender.send_weights()


def _connect(transport: str, client: _Engines, model: nn.Module) -> Any:
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    class Source(WeightSource):
        """The model's own weights, in one order in both channels."""

        def metadata(self) -> list[Any]:
            return [ParamMeta(name, t.dtype, tuple(t.shape)) for name, t in own_weights(model)[0].items()]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            yield from own_weights(model)[0].items()

    rank = dist.get_rank() if dist.is_initialized() else 0
    return WeightTransferTrainerFactory.trainer_init(
        _init_info(transport, rank, client.num_workers), client=client, source=Source()
    )


def _init_info(transport: str, rank: int, num_workers: int) -> Any:
    if transport == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        return IPCTrainerInitInfo(packed=True, rank=rank)
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    with socket.socket() as free:
        free.bind(("", 0))
        port = int(free.getsockname()[1])
    return NCCLTrainerInitInfo(
        master_address=ray.util.get_node_ip_address(),
        master_port=port,
        world_size=1 + num_workers,  # the sending learner, and every worker of every engine
        rank=rank,
    )


class _Engines:
    """What vLLM's trainer side asks of the inference side, for several engines (`VLLMWeightSyncClient`)."""

    def __init__(self, engines: Sequence[ActorHandle], workers_per_engine: int) -> None:
        self._engines = tuple(engines)
        self._per_engine = workers_per_engine
        self.num_workers = len(engines) * workers_per_engine
        self.version = 0

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Each engine's workers have ranks of their own behind those of the engines before."""
        self._all("shutdown_weight_transfer_engine", [{}] * len(self._engines))  # of a connection that broke
        infos = [dict(init_info) for _ in self._engines]
        for number, info in enumerate(infos):
            if "rank_offset" in info:
                info["rank_offset"] += number * self._per_engine
        self._all("init_weight_transfer_engine", [{"init_info": info} for info in infos])

    def start_weight_update(self) -> None:
        self._all("start_weight_update", [{}] * len(self._engines))

    def update_weights(self, update_info: Any) -> None:
        self._all("update_weights", [{"update_info": update_info}] * len(self._engines))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all("finish_weight_update", [{}] * len(self._engines), version=self.version)

    def _all(self, method: str, arguments: Sequence[Mapping[str, Any]], version: int | None = None) -> None:
        calls = zip(self._engines, arguments, strict=True)
        ray.get([engine.transfer.remote(method, values, version) for engine, values in calls])
