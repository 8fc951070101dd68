"""A whole GRPO step against TRL's: its newest `GRPOTrainer` through `environment_factory`.

`python -m benchmarks trl [CASE ...] [rounds=5] [micro_batch=8]` (`pip install "rllib_vlm[bench]"`): 64 episodes of
FrozenLake in groups of 8, up to 8 turns of 12 tokens, the whole conversation in the prompt, one epoch, one optimizer
step, the same tiny Qwen2.5-VL and settings. Cases: `text`, `vision` (a picture of 56x56 a turn), `taught` (text, a
model that imitated for a moment, so that games end early). Each side has a process of its own with two threads, and
they take turns; sampling, credit, learning and metrics are in the time of both. What TRL is given stands in
`_trl_theirs.py`. About 5 minutes.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import multiprocessing
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._arguments import numbers
from rllib_vlm.errors import RLlibVLMError, UnknownNameError

_CASES = ("text", "vision", "taught")
_DEFAULTS = {"rounds": 5, "micro_batch": 8}

Found = dict[str, list[dict[str, float]]]


def run(*arguments: str) -> dict[str, Any]:
    """Headline: TRL's time over ours with pictures, or in the first case asked for.

    Raises:
        UnknownNameError: no such case.
        RLlibVLMError: TRL is not installed, or a side died.
    """
    cases = [a for a in arguments if "=" not in a] or list(_CASES)
    for name in cases:
        if name not in _CASES:
            raise UnknownNameError("cases of trl", name, _CASES)
    size = numbers("trl", [a for a in arguments if "=" in a], _DEFAULTS)
    if importlib.util.find_spec("trl") is None:
        raise RLlibVLMError('TRL is not installed: pip install "rllib_vlm[bench]"')
    details: dict[str, Any] = {}
    for name in cases:
        details |= {f"{name}: {key}": value for key, value in _compared(_play(name, **size)).items()}
    headline = "vision" if "vision" in cases else cases[0]
    versions = {f"version of {p}": importlib.metadata.version(p) for p in ("trl", "transformers", "torch")}
    return {
        "name": "trl",
        "value": details[f"{headline}: times as fast"],
        "unit": f"times as fast as TRL, one GRPO step, {headline}",
        "details": {
            **details,
            **size,
            **versions,
            "image processor of TRL": "torchvision" if importlib.util.find_spec("torchvision") else "PIL",
        },
    }


def _compared(found: Found) -> dict[str, float]:
    ours, theirs = (_middle(found[side]) for side in ("ours", "theirs"))
    return {
        "times as fast": round(theirs["seconds"] / ours["seconds"], 3),
        "memory, of TRL's": round(ours["memory"] / theirs["memory"], 3),
        "memory with Ray's processes, of TRL's": round(
            ours["memory with Ray's processes"] / theirs["memory"], 3
        ),
        "seconds": round(ours["seconds"], 3),
        "seconds of sampling": round(ours["sampling"], 3),
        "seconds of learning": round(ours["learning"], 3),
        "seconds, TRL": round(theirs["seconds"], 3),
        "MiB": round(ours["memory"], 1),
        "MiB, TRL": round(theirs["memory"], 1),
        "answers": round(ours["answers"], 1),
        "answers that were played, TRL": round(theirs["calls"], 1),
        "sampled tokens": round(ours["sampled tokens"], 1),
        "sampled tokens, TRL": round(theirs["sampled tokens"], 1),
    }


def _middle(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: median(step[key] for step in steps) for key in steps[0]}


def _play(name: str, rounds: int, micro_batch: int) -> Found:
    """Steps of both sides, by turns; the first of each warms up."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        maker = context.Process(target=_make, args=(name, folder))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise RLlibVLMError(f"the model of {name!r} could not be made; see above")
        sides: dict[str, tuple[Any, tuple[Any, ...]]] = {
            "ours": (_ours, ()),
            "theirs": (_theirs, (micro_batch,)),
        }
        pipes: dict[str, Connection] = {}
        for side, (target, more) in sides.items():
            pipes[side], own = context.Pipe()
            process = context.Process(target=target, args=(own, name, folder, rounds + 1, *more))
            process.start()
            own.close()
            stack.callback(process.join)
            stack.callback(pipes[side].close)
            _answer(pipes[side], side)
        found: Found = {side: [] for side in sides}
        for _ in range(rounds + 1):
            for side, pipe in pipes.items():
                pipe.send(True)
                found[side].append(_answer(pipe, side))
    return {side: steps[1:] for side, steps in found.items()}


def _answer(pipe: Connection, side: str) -> dict[str, float]:
    try:
        answer: dict[str, float] = pipe.recv()
    except EOFError:
        raise RLlibVLMError(f"the process of {side!r} died; what it said stands above") from None
    return answer


# In processes of their own, which import what they need and nothing more: their memory is compared.


def _make(name: str, folder: str) -> None:
    from benchmarks._trl_game import Case

    Case(name).make_model(Path(folder))


def _ours(pipe: Connection, name: str, folder: str, steps: int) -> None:
    from benchmarks._trl_game import Case
    from benchmarks._trl_ours import play

    play(pipe, Case(name), folder, steps)


def _theirs(pipe: Connection, name: str, folder: str, steps: int, micro_batch: int) -> None:
    from benchmarks._trl_game import Case
    from benchmarks._trl_theirs import play

    play(pipe, Case(name), folder, steps, micro_batch)
