"""Small runs as Tune writes them: a folder, a result per line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rllib_vlm.diagnosis import curves as c

UPDATES = 30
WARM_START = 3


def healthy(update: int) -> dict[str, Any]:
    """The figures of an update of a run that learns from 40 to 80% of success and settles."""
    done = update / UPDATES
    wobble = 0.01 * (-1) ** update
    return {
        c.SUCCESS: 0.4 + 0.4 * done + wobble,
        c.RETURN: 4.0 + 4.0 * done + wobble,
        c.TURNS: 12.0 - 4.0 * done,
        c.TURNS_MAX: 30,
        c.EPISODES: 64,
        c.ANSWER_TOKENS: 25.0 + wobble,
        c.PARSE_FAILURES: 0.01,
        c.CUT_ANSWERS: 0.0,
        c.CRASHES: 0,
        c.TIMEOUTS: 0,
        c.REPLACED_GROUPS: 0,
        c.GROUP_SPREAD: 2.0 - done,
        c.GROUPS: 8,
        c.GROUPS_OF_ONE: 0,
        c.GROUPS_ALIKE: 2,
        c.POLICY_LOSS: -0.01,
        c.VALUE_LOSS: 2.0 - done,
        c.VALUE_MEAN: 4.0,
        c.TOTAL_LOSS: 0.5,
        c.ENTROPY: 0.5 - 0.2 * done,
        c.KL: 0.004,
        c.CLIP_FRACTION: 0.05,
        c.RATIO_MAX: 3.0,
        c.FIRST_LOG_RATIO: 1e-5,
        c.SAMPLER_GAP: 1e-6,
        c.EXPLAINED: 0.1 + 0.5 * done,
        c.GRAD_NORM: 0.5,
        c.GRAD_NORM_MAX: 0.9,
        c.LEARNING_RATE: 1e-4,
        c.TOKENS: 50_000.0,
        c.STEPS: 8.0,
        c.SKIPPED_STEPS: 0.0,
    }


def result(update: int, figures: dict[str, Any], **other: Any) -> dict[str, Any]:
    """A line of `result.json`; a figure that is `...` is not in it."""
    nested: dict[str, Any] = {
        "phase": "rl", "num_updates": update, "num_warm_start_updates": WARM_START, "done": False,
        "training_iteration": WARM_START + update, "env_runners": {}, "learners": {"__all_modules__": {"x": 1}},
        "timers": {"sample": 1.0},
    }  # fmt: skip
    for path, value in figures.items():
        *parts, name = path.split("/")
        place = nested
        for part in parts:
            place = place.setdefault(part, {})
        if value is not ...:
            place[name] = value
    return nested | other


def imitation(update: int) -> dict[str, Any]:
    """A line of the warm start, whose figures are no concern of the findings: a rate a hundred times as high, say."""
    figures = {
        c.SUCCESS: 1.0, c.IMITATION_LOSS: 1.0 / update, c.LEARNING_RATE: 1e-2, c.GRAD_NORM: 0.0, c.TOKENS: 0.0
    }  # fmt: skip
    return result(0, figures, num_warm_start_updates=update, phase="warm_start", training_iteration=update)


@pytest.fixture
def write_trial(tmp_path: Path) -> Callable[..., Path]:
    """`write_trial(figures)` writes a healthy run with the figures that `figures(update)` gives put over it."""

    def write(
        figures: Callable[[int], dict[str, Any]] = lambda update: {},
        *,
        numbers: range | list[int] = range(1, UPDATES + 1),
        name: str = "VLMPPO_x_00000",
        settings: dict[str, Any] | None = None,
        tail: str = "",
        events: list[dict[str, Any]] | None = None,
    ) -> Path:
        folder = tmp_path / "run" / name
        folder.mkdir(parents=True)
        lines = [imitation(update) for update in range(1, WARM_START + 1)]
        lines += [result(u, healthy(u) | figures(u), config=settings or {}) for u in numbers]
        (folder / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
        if events is not None:
            (folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
        return folder

    return write
