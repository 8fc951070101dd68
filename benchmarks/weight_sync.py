"""New weights from a learner to an engine in another process, against one copy of the bytes through shared memory.

`python -m benchmarks weight_sync [hidden=512] [layers=8] [rounds=41] [iterations=3]`: a learner in the driver, an env
runner in an actor of Ray, and what the algorithm does after each update: state of what learns, into the object store,
out of it and into the engine's model, until the runner has answered. The other way is the least that any transport
between two processes does: one writes the bytes into a shared block, another copies them out into memory of its own,
and says so. `details` has the share of a whole iteration, too: 16 episodes of 8 turns, sampled and learnt from. By
default 26 million parameters, 104 MB; about 2 minutes.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from statistics import median
from typing import Any

import numpy as np

from benchmarks._arguments import numbers
from benchmarks._cluster import local_ray
from rllib_vlm.algorithms.grpo import VLMGRPOConfig

_DEFAULTS = {"hidden": 512, "layers": 8, "rounds": 41, "iterations": 3}


def run(*arguments: str) -> dict[str, Any]:
    """Headline: the time of a synchronisation over that of one copy through shared memory."""
    size = numbers("weight_sync", arguments, _DEFAULTS)
    with local_ray():
        syncs, copies, shares, sizes = _measure(size)
    return {
        "name": "weight_sync",
        "value": round(median(syncs) / median(copies), 3),
        "unit": "times one copy of the same bytes through shared memory",
        "details": {
            "share of an iteration": round(median(shares), 4),
            "synchronisation, ms": round(1e3 * median(syncs), 1),
            "copy through shared memory, ms": round(1e3 * median(copies), 1),
            "megabytes": round(sum(sizes) / 1e6, 1),
            "arrays": len(sizes),
            **size,
        },
    }


def _measure(size: Mapping[str, int]) -> tuple[list[float], list[float], list[float], list[int]]:
    """Seconds of each synchronisation and of each copy, shares of iterations, bytes of each array."""
    algorithm = _config(size["hidden"], size["layers"]).build_algo()
    try:
        group = algorithm.env_runner_group
        weights, _ = algorithm._weights("trained")  # noqa: SLF001
        sizes = [int(value.nbytes) for value in weights.values()]
        del weights
        with _SharedCopy(sum(sizes)) as copy:
            syncs, copies = [], []
            for i in range(size["rounds"] + 1):
                # A runner that has these weights leaves them alone: each round has a version of its own.
                algorithm.learner_group._learner._weights_seq_no += 1  # noqa: SLF001
                start = time.perf_counter()
                algorithm._sync_weights(group)  # noqa: SLF001
                middle = time.perf_counter()
                copy()
                if i:
                    syncs.append(middle - start)
                    copies.append(time.perf_counter() - middle)
        shares = [_share(algorithm.train()) for _ in range(size["iterations"] + 1)][1:]
    finally:
        algorithm.stop()
    return syncs, copies, shares, sizes


def _config(hidden: int, layers: int) -> VLMGRPOConfig:
    config = VLMGRPOConfig()
    config.environment("frozen_lake", env_config={"observation": "text", "max_steps": 50})
    config.env_runners(
        num_env_runners=1, num_envs_per_env_runner=16, num_cpus_per_env_runner=1, torch_threads=2
    )
    config.learners(num_learners=0, torch_threads=2)
    config.rl_module(model_config={"size": "tiny", "hidden_size": hidden, "num_layers": layers})
    config.prompting(parser="no_think", template="short", observation="text")
    config.generation(max_new_tokens=12).simulation(max_turns=8)
    config.training(groups_per_update=2, group_size=8, drop_uninformative=False, lr=1e-6)
    config.evaluation(evaluation_at=[])
    return config


def _share(result: dict[str, Any]) -> float:
    """Of the iteration's time, in synchronisation."""
    return float(result["timers"]["sync"]) / float(result["time_this_iter_s"])


class _SharedCopy:
    """Copies so many bytes to another process when called, and returns when they are there."""

    def __init__(self, size: int) -> None:
        self._source = np.ones(size, np.uint8)
        self._memory = SharedMemory(create=True, size=size)
        self._block = np.ndarray(size, np.uint8, self._memory.buf)
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_receive, args=(theirs, self._memory.name, size), daemon=True)

    def __enter__(self) -> _SharedCopy:
        self._process.start()
        return self

    def __call__(self) -> None:
        np.copyto(self._block, self._source)
        self._pipe.send(True)
        self._pipe.recv()

    def __exit__(self, *error: object) -> None:
        self._pipe.send(False)
        self._process.join()
        del self._block
        self._memory.close()
        self._memory.unlink()


def _receive(pipe: Connection, name: str, size: int) -> None:
    memory = SharedMemory(name=name)
    block, own = np.ndarray(size, np.uint8, memory.buf), np.zeros(size, np.uint8)
    while pipe.recv():
        np.copyto(own, block)
        pipe.send(True)
    del block
    memory.close()
