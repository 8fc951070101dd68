"""Our side of the benchmark `trl`: one process, a step of the algorithm whenever it is told."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection

import psutil
import torch

from benchmarks._cluster import local_ray
from benchmarks._trl_game import THREADS, Case, peak_mib


def play(pipe: Connection, case: Case, folder: str, steps: int) -> None:
    """Builds the algorithm, says so, then takes `steps` steps, each when told, and tells of each."""
    torch.set_num_threads(THREADS)
    with local_ray(THREADS):
        _play(pipe, case, folder, steps)


def _play(pipe: Connection, case: Case, folder: str, steps: int) -> None:
    config = case.config().rl_module(model_config={"checkpoint": folder})
    config.env_runners(
        num_env_runners=0, num_envs_per_env_runner=config.groups_per_update * config.group_size
    )
    config.learners(num_learners=0, torch_threads=THREADS)
    algorithm = config.build_algo()
    pipe.send({})
    for _ in range(steps):
        pipe.recv()
        start = time.perf_counter()
        result = algorithm.train()
        seconds = time.perf_counter() - start
        played, timers = result["env_runners"], result["timers"]
        episodes = config.groups_per_update * config.group_size
        pipe.send(
            {
                "seconds": seconds,
                "sampling": float(timers["sample"]),
                "learning": float(timers["learn"]),
                "answers": float(played["episode_len_mean"]) * episodes,
                "sampled tokens": float(played["num_generated_tokens"]),
                "memory": peak_mib(),
                "memory with Ray's processes": peak_mib() + _of_children(),
            }
        )
    algorithm.stop()


def _of_children() -> float:
    """MiB of what Ray runs beside this process, shared pages by share."""
    family = psutil.Process(os.getpid()).children(recursive=True)
    return sum(child.memory_full_info().pss for child in family if child.is_running()) / 2**20
