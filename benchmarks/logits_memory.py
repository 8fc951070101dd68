"""Memory and time of log-probs and entropy over a large vocabulary, against holding all logits.

`python -m benchmarks logits_memory [positions=2048] [hidden=896] [rounds=5]`: forward and backward of one output layer
with Qwen2.5's vocabulary, every position scored, entropy with gradient. Each pass has a process of its own, so that the
operating system's peak of its memory is that pass's; the two ways take turns. Memory is what a pass needs beyond the
states and weights it is given; the gradients it leaves behind are part of it. 896 is the width of Qwen2.5-0.5B; that of
Qwen2.5-VL-3B is 2048. About 5 minutes and 8 GiB on two cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._arguments import numbers
from rllib_vlm.core.scoring import OutputLayer, score_tokens
from rllib_vlm.losses.logprobs import SelectedLogprobs
from rllib_vlm.types import SamplingParams

_VOCABULARY, _TOKENS = 151_936, 151_665  # Qwen2.5's: rows of its output layer, and those that are tokens
_DEFAULTS = {"positions": 2048, "hidden": 896, "rounds": 5}


def run(*arguments: str) -> dict[str, Any]:
    """Headline: peak memory of the tiles over that of all logits at once."""
    size = numbers("logits_memory", arguments, _DEFAULTS)
    passes: dict[str, list[dict[str, float]]] = {"tiles": [], "all": []}
    for _ in range(size["rounds"]):
        for way, found in passes.items():
            found.append(_in_a_process(way, size["positions"], size["hidden"]))
    ours, theirs = ({k: median(p[k] for p in found) for k in found[0]} for found in passes.values())
    apart = max(abs(ours[k] / theirs[k] - 1.0) for k in ours if k.startswith("sum "))
    return {
        "name": "logits_memory",
        "value": round(ours["memory_mib"] / theirs["memory_mib"], 4),
        "unit": "of the peak memory that all logits at once need",
        "details": {
            "time, of theirs": round(ours["wall_s"] / theirs["wall_s"], 3),
            "processor time, of theirs": round(ours["cpu_s"] / theirs["cpu_s"], 3),
            "memory, MiB": round(ours["memory_mib"], 1),
            "memory of all logits, MiB": round(theirs["memory_mib"], 1),
            "peak of the process, MiB": round(ours["peak_mib"], 1),
            "peak of the process with all logits, MiB": round(theirs["peak_mib"], 1),
            "seconds": round(ours["wall_s"], 2),
            "seconds with all logits": round(theirs["wall_s"], 2),
            "largest relative difference of log-probs, entropy and gradients": apart,
            **size,
            "vocabulary": _VOCABULARY,
            "threads": torch.get_num_threads(),
        },
    }


def _in_a_process(way: str, positions: int, hidden: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.logits_memory", way, str(positions), str(hidden)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout))


def _pass(way: str, positions: int, hidden: int) -> dict[str, float]:
    """One forward and backward in this process."""
    torch.manual_seed(0)
    states = torch.randn(positions, hidden, requires_grad=True)
    weight = torch.randn(_VOCABULARY, hidden).mul_(hidden**-0.5).requires_grad_()
    token_ids = torch.randint(0, _TOKENS, (positions,))
    advantages = torch.randn(positions)
    score = _tiles if way == "tiles" else _all_logits
    for some in (states[:2].detach(), states):  # the first are few, and load what a process loads once
        before, start, cpu = _memory_mib("VmRSS"), time.perf_counter(), time.process_time()
        scores = score(some, weight, token_ids[: len(some)])
        assert scores.entropy is not None
        loss = -(scores.logprobs * advantages[: len(some)]).sum() - 0.01 * scores.entropy.sum()
        if some is states:
            loss.backward()
    assert states.grad is not None and weight.grad is not None
    return {
        "wall_s": time.perf_counter() - start,
        "cpu_s": time.process_time() - cpu,
        "memory_mib": _memory_mib("VmHWM") - before,
        "peak_mib": _memory_mib("VmHWM"),
        "sum of log-probs": float(scores.logprobs.sum()),
        "sum of entropies": float(scores.entropy.sum()),
        "sum of squares, states": float(states.grad.square().sum()),
        "sum of squares, weights": float(weight.grad.norm() ** 2),
    }


def _tiles(states: Tensor, weight: Tensor, token_ids: Tensor) -> SelectedLogprobs:
    layer = OutputLayer(
        logits=lambda some: F.linear(some, weight),
        vocab_size=_VOCABULARY,
        weight=weight,
        banned=tuple(range(_TOKENS, _VOCABULARY)),
    )
    return score_tokens(states, layer, token_ids, SamplingParams(), with_entropy=True)


def _all_logits(states: Tensor, weight: Tensor, token_ids: Tensor) -> SelectedLogprobs:
    """As briefly as it is written by hand: no array more than log-probs and their entropy need."""
    logits = F.linear(states, weight)
    logits[:, _TOKENS:] = -1e4  # as good as -inf: such a probability is 0 in float32, and 0 times it is 0
    every = logits.log_softmax(-1)
    del logits
    return SelectedLogprobs(
        logprobs=every.gather(-1, token_ids[:, None])[:, 0], entropy=-(every.exp() * every).sum(-1)
    )


def _memory_mib(field: str) -> float:
    """Of this process, from Linux: `VmRSS` now, or `VmHWM`, the most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    print(json.dumps(_pass(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
