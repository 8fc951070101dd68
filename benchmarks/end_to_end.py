"""Wall clock to a success rate on held-out episodes, of two source trees: an older commit against the present one.

`python -m benchmarks end_to_end BEFORE AFTER [goal=60] [seeds=1] [every=2] [PATH=VALUE ...]`. Each of the two is a
source tree (say of `git worktree add`), in which `tuned_examples/spoc.yaml` is then run once a seed, with an evaluation
every `every` updates, until one is at the goal; or the folder of such a run, which is read. A dotted PATH is a setting
that both trees get: `evaluation.evaluation_config.temperature=1.0` has both judged alike. The clock of a run is that of
its iterations less what evaluating took: evaluations are how this is measured, not part of the work.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._arguments import numbers
from rllib_vlm.callbacks.metrics import look_up
from rllib_vlm.diagnosis.records import RESULT_FILE, find_trials, json_lines
from rllib_vlm.errors import RLlibVLMError

_EXAMPLE = Path("tuned_examples") / "spoc.yaml"
_DEFAULTS = {"goal": 60, "seeds": 1, "every": 2}


def run(*arguments: str) -> dict[str, Any]:
    """Headline: seconds before over seconds after, medians over the runs.

    Raises:
        RLlibVLMError: not two places, no tree or run there, or a present run that never reached the goal.
    """
    places = [Path(a) for a in arguments if "=" not in a]
    settings = [a for a in arguments if "." in a.partition("=")[0] and "=" in a]
    size = numbers("end_to_end", [a for a in arguments if "=" in a and a not in settings], _DEFAULTS)
    if len(places) != 2:
        raise RLlibVLMError(f"{len(places)} places: give two source trees or run folders, BEFORE and AFTER")
    folders = [place for place in places if not (place / _EXAMPLE).is_file()]
    if settings and folders:
        raise RLlibVLMError(
            f"{folders[0]}: a run that is read has the settings it has; {settings[0]} is for trees"
        )
    for name in ("debugging.seed", "evaluation.evaluation_interval"):
        if any(setting.partition("=")[0] == name for setting in settings):
            raise RLlibVLMError(f"{name} is this benchmark's own: give seeds=, or every=")
    if size["goal"] > 100:
        raise RLlibVLMError(f"goal={size['goal']}: a percentage, at most 100")
    for place in folders:
        find_trials(place)  # what is missing is told before anything is trained
    goal = size["goal"] / 100.0
    runs: dict[str, list[list[tuple[float, float]]]] = {"before": [], "after": []}
    for seed in range(size["seeds"]):  # by turns: the machine may change over hours
        for (side, found), place in zip(runs.items(), places, strict=True):
            if place in folders:
                if not seed:
                    found += [curve(json_lines(t / RESULT_FILE, [])) for t in find_trials(place)]
                continue
            print(f"{side}: {_EXAMPLE.name}, seed {seed}", flush=True)
            settings_of_run = [
                *settings,
                f"debugging.seed={seed}",
                f"evaluation.evaluation_interval={size['every']}",
            ]
            folder = _train(place, settings_of_run, stop=f"evaluation/success_rate={goal}")
            found += [curve(json_lines(t / RESULT_FILE, [])) for t in find_trials(folder)]
    return summary(runs, goal, settings)


def curve(records: Iterable[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """(seconds, success rate) of each evaluation of a run, evaluations not on the clock."""
    seconds, found = 0.0, []
    for record in records:
        evaluated = float(look_up(record, "evaluation/wall_s") or 0.0)
        seconds += float(look_up(record, "time_this_iter_s") or 0.0) - evaluated
        success = look_up(record, "evaluation/success_rate")
        if success is not None:
            found.append((seconds, float(success)))
    return found


def reached(evaluations: Sequence[tuple[float, float]], goal: float) -> float | None:
    """Seconds of the first evaluation at the goal, if there is one."""
    return next((seconds for seconds, success in evaluations if success >= goal), None)


def summary(
    runs: Mapping[str, Sequence[Sequence[tuple[float, float]]]], goal: float, settings: Sequence[str] = ()
) -> dict[str, Any]:
    """The result, from evaluations of the runs of both sides.

    A run of the older tree that never reached the goal counts with all its seconds, so that the figure is then one that
    the ratio is at least; the details say so.

    Raises:
        RLlibVLMError: a run of the present tree never reached the goal, or one has no evaluation.
    """
    times: dict[str, list[float]] = {}
    best: dict[str, list[float]] = {}
    missed = 0
    for side, found in runs.items():
        for evaluations in found:
            highest = max((success for _, success in evaluations), default=0.0)
            seconds = reached(evaluations, goal)
            if seconds is None and (side == "after" or not evaluations):
                raise RLlibVLMError(
                    f"a run of {side!r} never reached {goal:.0%} on held-out episodes (at most {highest:.1%}): "
                    "give a lower goal=, or more seeds="
                )
            if seconds is None:
                missed += 1
            times.setdefault(side, []).append(evaluations[-1][0] if seconds is None else seconds)
            best.setdefault(side, []).append(highest)
    middle = {side: median(found) for side, found in times.items()}
    return {
        "name": "end_to_end",
        "value": round(middle["before"] / middle["after"], 3),
        "unit": f"times as fast to {goal:.0%} held-out success as before",
        "details": {
            **{f"seconds, {side}": round(seconds, 1) for side, seconds in middle.items()},
            **{f"runs, {side}": len(found) for side, found in times.items()},
            **{f"highest success, {side}": median(found) for side, found in best.items()},
            **({"runs before that never got there": missed, "value is": "at least"} if missed else {}),
            **({"settings": " ".join(settings)} if settings else {}),
        },
    }


def _train(tree: Path, settings: Iterable[str], stop: str) -> Path:
    """Runs the example as that tree has it, with these settings; returns the run's folder."""
    start = "from rllib_vlm.cli import main; main()"
    command = [sys.executable, "-c", start, "train", "file", str(_EXAMPLE), "--stop", stop]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(
        command,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree.resolve())},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    found = re.search(r"^run folder: (.+)$", done.stdout, re.MULTILINE)
    if done.returncode or found is None:
        raise RLlibVLMError(
            f"the run in {tree} failed (exit status {done.returncode}):\n{done.stdout[-2000:]}"
        )
    return Path(found[1])
