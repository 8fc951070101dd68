"""Does RL generalise where SFT memorises? The comparison of arXiv 2501.17161 at the size of a CPU.

`python -m benchmarks study [virl] [cards] [start=broad,narrow] [seeds=3] [out=FILE]`; by default virl from `broad`.

A small model of random weights is first taught by the expert until it follows some of the way (the *start*). Then it
goes on in two ways, on the training tasks alone: with PPO (`tuned_examples/NAME_ppo.yaml`), or with more of the
expert's answers (`NAME_sft.yaml`) for as many CPU-seconds, at the same learning rate. Every few updates both play the
tests of the task's suite: held-out tasks, the other rule, and for streets the other city.

A start is `broad` or `narrow`. The paper's model knew left from right and more than one city before it was tuned at
all; `broad` stands in for that: demonstrations under both rules (and of both cities, other routes than the tests')
mixed. `narrow` has seen the training rule and city alone. What is compared only ever trains on those.

All is done in this process, one run after another, on one thread. Each run adds a line to FILE as it ends; runs that
stand there are not made again, and their starts are kept beside it. FILE.md is then the table, FILE.NAME.START.png
the curves.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from benchmarks._results import commit
from benchmarks._rows import read_rows
from benchmarks._study_report import draw, table, verdicts
from benchmarks._study_runs import ARMS, COMPARISONS, STARTS, Run, play, settings
from rllib_vlm.config.runner import start_ray
from rllib_vlm.errors import RLlibVLMError, UnknownNameError
from rllib_vlm.files import append_json_line, write_text

_FIRST = "virl"


def run(*arguments: str) -> dict[str, Any]:
    """Headline: success under the other rule at the end, RL minus SFT, in points, over the seeds of the first task."""
    options = _options(arguments)
    wanted = _wanted(options)
    rows = read_rows(options.out, Run, ("task", "start", "arm", "seed"), lambda one: settings(one.task))
    missing = [one for one in wanted if one not in rows]
    if missing:
        made_by = commit()  # of the code that is loaded, whatever happens to the tree meanwhile
        torch.set_num_threads(1)
        start_ray(dashboard=False, num_cpus=1)
        try:
            with _kept(options.out) as folder:
                for one in missing:
                    rows[one] = play(one, folder, rows)
                    if options.out is not None:
                        line = {
                            **asdict(one),
                            **rows[one],
                            "commit": made_by,
                            "settings": settings(one.task),
                        }
                        append_json_line(options.out, line)
        finally:
            ray.shutdown()
    found = {one: rows[one] for one in wanted}
    _report(found, options.out)
    return _summary(found)


# What to run.


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    tasks: tuple[str, ...]
    starts: tuple[str, ...]
    seeds: int
    out: Path | None


def _options(arguments: Sequence[str]) -> _Options:
    """Raises UnknownNameError for a name that is none, RLlibVLMError for a number that is none."""
    values = dict(a.split("=", 1) for a in arguments if "=" in a)
    tasks = tuple(dict.fromkeys(a for a in arguments if "=" not in a)) or (_FIRST,)
    starts = tuple(dict.fromkeys(values.get("start", STARTS[0]).split(",")))
    known = (
        (COMPARISONS, tasks),
        (("start", "seeds", "out"), tuple(values)),
        (STARTS, starts),
    )
    for names, given in known:
        for name in given:
            if name not in names:
                raise UnknownNameError("study", name, list(names))
    seeds = values.get("seeds", "3")
    if not seeds.isdecimal() or int(seeds) < 1:
        raise RLlibVLMError(f"seeds={seeds}: not a whole number of 1 or more, e.g. seeds=3")
    out = Path(values["out"]) if "out" in values else None
    return _Options(tasks=tasks, starts=starts, seeds=int(seeds), out=out)


def _wanted(options: _Options) -> list[Run]:
    """Seed by seed, so that what is interrupted has whole pairs."""
    return [
        Run(task=task, start=start, arm=arm, seed=seed)
        for task in options.tasks
        for start in options.starts
        for seed in range(options.seeds)
        for arm in ARMS
    ]


@contextmanager
def _kept(out: Path | None) -> Iterator[Path]:
    """Where starts stand: beside `out`, or for this once."""
    if out is not None:
        yield out.absolute().with_name(f"{out.name}.starts")
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


# What was found.


def _report(rows: Mapping[Run, Mapping[str, Any]], out: Path | None) -> None:
    """Writes the table and the curves beside `out`."""
    if out is None:
        return
    groups: dict[tuple[str, str], dict[str, list[Any]]] = {}
    for one, row in rows.items():
        groups.setdefault((one.task, one.start), {}).setdefault(one.arm, []).append(row["points"])
    text = []
    for (task, start), arms in groups.items():
        names = [part.name for part in COMPARISONS[task].parts]
        text.append(f"{task}, start {start}, {len(arms['rl'])} seeds\n\n{table(arms, names)}")
        draw(out.with_name(f"{out.stem}.{task}.{start}.png"), arms, names)
    write_text(out.with_suffix(".md"), "\n".join(text))


def _summary(rows: Mapping[Run, Mapping[str, Any]]) -> dict[str, Any]:
    details: dict[str, Any] = {}
    headline: float | None = None
    for task, start in dict.fromkeys((one.task, one.start) for one in rows):
        arms = {
            arm: [
                row["points"]
                for one, row in rows.items()
                if (one.task, one.start, one.arm) == (task, start, arm)
            ]
            for arm in ARMS
        }
        for name, difference, cells in verdicts(arms, [part.name for part in COMPARISONS[task].parts]):
            details |= {f"{task} from {start}, {name}: {label}": value for label, value in cells.items()}
            if headline is None and name == "rule_ood":
                headline = difference
    return {
        "name": "study",
        "value": headline,
        "unit": "points of success, other rule, RL minus SFT",
        "details": details,
    }
