"""What a suite leaves of each part: a line of JSON for every step, every route, and the totals.

PART.jsonl, whose lines say what they are in `record`. The names are those of V-IRL's evaluator (LeslieTrue/SFTvsRL)
where it has one:

step    `sample_id` (seed of the task), `step`, `veri_step` (which try at the present decision), `output`, `reward`,
        `info`
route   `sample_id`, `Success`, `reward` (sum), `turns`, `steps`, `verification_steps`, `step_accuracy`, `metrics`,
        `task`
total   see `totals`

A step is a decision, a verification step an answer that was graded: V-IRL grades several tries at one decision.
Simulators that grade no answers (`info["grades"]`, see `sims.base.Simulator`) have turns alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from json import dumps, loads
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rllib_vlm.env.summary import wilson_interval
from rllib_vlm.env.transcript import Transcript
from rllib_vlm.files import write_text

Grades = list[Mapping[str, Any]]


def write_records(
    path: Path, transcripts: Sequence[Transcript], conditions: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes all lines of a part at once.

    Args:
        path: of the file.
        transcripts: of its episodes.
        conditions: what the part was played by; joins the totals.

    Returns:
        The totals, as JSON gives them back.

    Raises:
        OSError: the disk is full or fails.
    """
    # Arguments from Python may be more than JSON knows.
    total: dict[str, Any] = loads(dumps({**totals(transcripts), **conditions}, default=str))
    lines = [
        *(record for transcript in transcripts for record in _of_episode(transcript)),
        {"record": "total", **total},
    ]
    write_text(path, "".join(dumps(line) + "\n" for line in lines))
    return total


def totals(transcripts: Sequence[Transcript]) -> dict[str, Any]:
    """The figures of a part.

    `success` and `step_accuracy`: `rate`, `count`, `of`, and `interval` (Wilson, 95%); the second is None without
    grades, and its interval takes answers as independent, which those of one episode are not. `reward`: `mean` and
    `deviation` (of a sample) of the episodes' sums. `steps`, `verification_steps`: see the module. `rates`: how often
    each verdict was given, of all graded answers.
    """
    successes = sum(transcript.summary.success for transcript in transcripts)
    rewards = [transcript.summary.total_reward for transcript in transcripts]
    grades = [grade for transcript in transcripts for grade in _grades(transcript)]
    turns = sum(transcript.summary.turns for transcript in transcripts)
    verdicts = Counter(str(grade["verdict"]) for grade in grades)
    return {
        "episodes": len(transcripts),
        "success": _rate(successes, len(transcripts)),
        "step_accuracy": _rate(sum(bool(g["correct"]) for g in grades), len(grades)) if grades else None,
        "reward": {"mean": fmean(rewards), "deviation": stdev(rewards) if len(rewards) > 1 else 0.0},
        "turns": turns,
        "steps": _decisions(grades) if grades else turns,
        "verification_steps": len(grades) if grades else None,
        "rates": {verdict: count / len(grades) for verdict, count in sorted(verdicts.items())},
    }


def _of_episode(transcript: Transcript) -> Iterable[dict[str, Any]]:
    summary, grades = transcript.summary, _grades(transcript)
    for number, turn in enumerate(transcript.turns):
        given = turn.info.get("grades") or ()
        yield {
            "record": "step",
            "sample_id": summary.task_seed,
            "step": number,
            "veri_step": given[0]["attempt"] if given else None,
            "output": turn.output,
            "reward": turn.reward,
            "info": dict(turn.info),
        }
    yield {
        "record": "route",
        "sample_id": summary.task_seed,
        "Success": summary.success,
        "reward": summary.total_reward,
        "turns": summary.turns,
        "steps": _decisions(grades) if grades else summary.turns,
        "verification_steps": len(grades) if grades else None,
        "step_accuracy": fmean(bool(g["correct"]) for g in grades) if grades else None,
        "metrics": dict(summary.metrics),
        "task": dict(transcript.task),
    }


def _grades(transcript: Transcript) -> Grades:
    return [grade for turn in transcript.turns for grade in turn.info.get("grades") or ()]


def _decisions(grades: Grades) -> int:
    return sum(grade["attempt"] == 1 for grade in grades)


def _rate(count: int, of: int) -> dict[str, Any]:
    return {
        "rate": count / of if of else 0.0,
        "count": count,
        "of": of,
        "interval": list(wilson_interval(count, of)),
    }
