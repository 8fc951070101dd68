"""What a trial has written into its folder, read back: results, settings, and what the collapse guard did.

A run that died left its files as they were at that moment, so what cannot be read is left out and told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rllib_vlm.diagnosis.curves import (
    FIRST_LOG_RATIO,
    GROUNDING_LOSS,
    IMITATION_LOSS,
    IMITATION_NUMBER,
    LEARNER,
    NUMBER,
    POLICY_LOSS,
    RUNNERS,
    Curves,
)
from rllib_vlm.errors import RLlibVLMError

RESULT_FILE = "result.json"
SETTINGS_FILE = "params.json"
EVENTS_FILE = "events.jsonl"  # of guard.collapse_guard, which is not imported: it would load Ray


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A line of the guard's."""

    kind: str  # "sign", "alarm", "rollback", "stopped", ...
    update: int
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Held-out episodes."""

    at: str
    update: int  # of reinforcement learning; 0 before the first
    success: float


@dataclass(slots=True, kw_only=True)
class Trial:
    """One trial's records."""

    folder: Path
    updates: Curves  # of reinforcement learning
    imitation: Curves  # of the warm start
    settings: Mapping[str, Any] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    finished: bool = False
    notes: list[str] = field(default_factory=list)  # what could not be read


def find_trials(path: Path) -> list[Path]:
    """The trial folders that `path` means: itself, or those in it.

    Raises:
        RLlibVLMError: it is no folder, or there is no trial in it that has reported anything.
    """
    root = path.expanduser()
    try:
        if not root.is_dir():
            raise RLlibVLMError(f"{root} is no folder; give a run's folder, or a trial's folder in it")
        if (root / RESULT_FILE).is_file():
            return [root]
        found = sorted({f.parent for name in (RESULT_FILE, SETTINGS_FILE) for f in root.glob(f"*/{name}")})
        if not any((folder / RESULT_FILE).is_file() for folder in found):
            raise RLlibVLMError(
                f"{root} holds no {RESULT_FILE}, nor does a folder in it: it is no run of Tune, or one that "
                "ended before its first update. Give a run's folder, or a trial's folder in it."
            )
    except OSError as error:
        raise RLlibVLMError(f"{str(root)[:200]}: {error.strerror}") from error
    return found


def read_trial(folder: Path) -> Trial:
    """Everything a trial has written that says how it went.

    Raises:
        RLlibVLMError: there is no result in it.
    """
    notes: list[str] = []
    rl: list[tuple[int, dict[str, float]]] = []
    imitation: list[tuple[int, dict[str, float]]] = []
    evaluations: list[Evaluation] = []
    settings: Any = {}
    last: Mapping[str, Any] | None = None
    for record in json_lines(folder / RESULT_FILE, notes):
        figures = _figures(record)
        settings, last = record.pop("config", settings), record
        if _is_rl(figures):
            rl.append((_count(figures.get(NUMBER), len(rl) + 1), figures))
        elif IMITATION_LOSS in figures or GROUNDING_LOSS in figures:
            imitation.append((_count(figures.get(IMITATION_NUMBER), len(imitation) + 1), figures))
        success = figures.get("evaluation/success_rate")
        if success is not None and np.isfinite(success):
            at = str(record["evaluation"].get("at", "interval"))
            evaluations.append(Evaluation(at=at, update=_count(figures.get(NUMBER), 0), success=success))
    if last is None:
        raise RLlibVLMError(
            f"{folder / RESULT_FILE} holds no result: the trial ended before its first update, or the file is damaged"
        )
    if not isinstance(settings, Mapping) or not settings:
        settings = _settings(folder / SETTINGS_FILE)
    events_file = folder / EVENTS_FILE
    return Trial(
        folder=folder,
        updates=_curves(rl),
        imitation=_curves(imitation),
        settings=settings,
        events=_events(events_file, notes) if events_file.exists() else [],
        evaluations=evaluations,
        finished=last.get("done") is True or last.get("phase") == "finished",
        notes=notes,
    )


def json_lines(file: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines; NaN and Infinity are taken as the numbers they stand for.

    Args:
        file: to read.
        notes: to which a sentence is added where lines are torn or no objects.

    Raises:
        RLlibVLMError: the file is missing or cannot be read.
    """
    bad: list[int] = []
    number = 0
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    value = None
                if isinstance(value, dict):
                    yield value
                else:
                    bad.append(number)
    except FileNotFoundError as error:
        raise RLlibVLMError(
            f"{file.parent} holds no {file.name}: it ended before its first update"
        ) from error
    except OSError as error:
        raise RLlibVLMError(f"{file}: {error.strerror}") from error
    if bad == [number]:
        notes.append(f"The last line of {file.name} is torn and left out.")
    elif bad:
        notes.append(
            f"{len(bad)} lines of {file.name} are no JSON objects and left out, line {bad[0]} first."
        )


def _figures(record: Mapping[str, Any]) -> dict[str, float]:
    """Every number of a result that may be asked for, by its path; the rest, which is most of it, is let go."""
    learners = record.get("learners")
    parts = {
        "": record,
        RUNNERS: record.get("env_runners"),
        LEARNER: learners.get("default_policy") if isinstance(learners, Mapping) else None,
        "evaluation/": record.get("evaluation"),
    }
    found: dict[str, float] = {}
    for prefix, part in parts.items():
        for name, value in part.items() if isinstance(part, Mapping) else ():
            if isinstance(value, bool):
                continue
            if isinstance(value, int | float):
                found[prefix + name] = _float(value)
            elif value is None:  # how some writers put a NaN
                found[prefix + name] = np.nan
    return found


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # JSON has whole numbers of any size
        return np.inf


def _is_rl(figures: Mapping[str, float]) -> bool:
    """An update that read no tokens has no loss, but says what it would have read them for."""
    return POLICY_LOSS in figures or (FIRST_LOG_RATIO in figures and IMITATION_LOSS not in figures)


def _count(value: float | None, otherwise: int) -> int:
    return int(value) if value is not None and np.isfinite(value) and abs(value) < 2**53 else otherwise


def _curves(updates: list[tuple[int, dict[str, float]]]) -> Curves:
    return Curves(np.array([number for number, _ in updates], np.int64), [figures for _, figures in updates])


def _settings(file: Path) -> Mapping[str, Any]:
    """Without them advice cannot say what a setting is now, which is no reason to refuse."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _events(file: Path, notes: list[str]) -> list[Event]:
    found = []
    for line in json_lines(file, notes):
        update = line.get("update")
        if isinstance(update, int | float) and not isinstance(update, bool):
            kind = str(line.get("event"))
            found.append(Event(kind=kind, update=_count(_float(update), 0), words=_event_words(kind, line)))
    return found


def _event_words(kind: str, line: Mapping[str, Any]) -> str:
    why = line.get("why")
    because = f": {'; '.join(map(str, why))}" if isinstance(why, list) and why else ""
    if kind in ("alarm", "sign"):
        usual = line.get("usual")
        before = f", usually {_short(usual)}" if usual is not None else ""
        return f"{kind}, {line.get('vital')} {_short(line.get('value'))}{before}"
    if kind == "rollback":
        return f"went back to update {line.get('to')}{because}"
    reason = line.get("reason")
    return f"{kind.replace('_', ' ')}{because}" + (f" ({reason})" if reason else "")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
