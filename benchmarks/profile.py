"""Where the time of one iteration goes: phases of a real run, from the metrics it reports (docs/metrics.md).

`python -m benchmarks profile [RUN] [updates=3]`: `tuned_examples/spoc.yaml` without its warm start and evaluations
for so many updates, or a run's or trial's folder that is there already. Phases are medians over the updates of RL,
the first of a run left out, which warms up. Env runners work at the same time: their phases are means over runners,
and what their call took beyond these is `sampling, the rest`. About 4 minutes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._arguments import numbers
from benchmarks._cluster import local_ray
from rllib_vlm.callbacks.metrics import look_up
from rllib_vlm.diagnosis.records import RESULT_FILE, find_trials, json_lines
from rllib_vlm.errors import RLlibVLMError

_SETTINGS = ("warm_start.updates=0", "evaluation.evaluation_at=[]", "callbacks=[]")
_RUNNERS = {
    "generating": "time_generate_s",
    "simulating": "time_simulate_s",
    "rendering prompts": "time_render_s",
}
_LEARNER = "learners/default_policy"


def run(*arguments: str) -> dict[str, Any]:
    """Headline: seconds of an iteration."""
    folders = [a for a in arguments if "=" not in a]
    updates = numbers("profile", [a for a in arguments if "=" in a], {"updates": 3})["updates"]
    if folders:
        records = [
            record
            for folder in folders
            for trial in find_trials(Path(folder))
            for record in json_lines(trial / RESULT_FILE, [])
        ]
    else:
        records = _short_run(updates)
    return summary(records)


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The result, from a run's records.

    Raises:
        RLlibVLMError: fewer than two updates of reinforcement learning among them.
    """
    # A record says where the run stands after its iteration: the last update of a run is "finished".
    learnt = [r for r in records if look_up(r, "timers/credit") is not None and "evaluation" not in r]
    if len(learnt) < 2:
        raise RLlibVLMError(f"{len(learnt)} updates of reinforcement learning: a profile needs two or more")
    found = [phases(record) for record in learnt[1:]]
    middle = {phase: round(median(f[phase] for f in found), 3) for phase in found[0]}
    return {
        "name": "profile",
        "value": round(sum(middle.values()), 2),
        "unit": "seconds, one iteration of spoc.yaml",
        "details": {"phases": middle, "iterations": len(found)},
    }


def phases(record: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of each phase of an iteration; together they are all of it."""

    def of(name: str) -> float:
        value = look_up(record, name)
        return float(value) if isinstance(value, int | float) else 0.0

    sample, learn = of("timers/sample"), of("timers/learn")
    inside = {phase: of(f"env_runners/{name}") for phase, name in _RUNNERS.items()}
    if (
        total := sum(inside.values())
    ) > sample:  # simulators in processes of their own work at the same time, too
        inside = {phase: seconds * sample / total for phase, seconds in inside.items()}
    prepare = min(learn, of(f"{_LEARNER}/prepare_s"))
    found = {
        **inside,
        "sampling, the rest": sample - sum(inside.values()),
        "credit": of("timers/credit"),
        "rows and packing": prepare,
        "learning": learn - prepare,
        "weights to engines": of("timers/sync"),
    }
    return {**found, "the rest": max(0.0, of("time_this_iter_s") - sum(found.values()))}


def _short_run(updates: int) -> list[dict[str, Any]]:
    from rllib_vlm.config.loader import load
    from rllib_vlm.config.resources import examples
    from rllib_vlm.config.runner import register

    with local_ray():
        experiment = load(examples()["spoc"], overrides=_SETTINGS)[0]
        register(experiment)
        algorithm = experiment.config.build_algo()
        try:
            return [algorithm.train() for _ in range(updates)]
        finally:
            algorithm.stop()
