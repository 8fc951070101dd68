"""The diagnosis of a run in words, for people and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rllib_vlm.diagnosis import curves as c
from rllib_vlm.diagnosis.curves import MIN_UPDATES, in_words, largest, levels, running
from rllib_vlm.diagnosis.finding import UNKNOWN, Finding
from rllib_vlm.diagnosis.findings import diagnose
from rllib_vlm.diagnosis.picture import PICTURE_FILE, draw
from rllib_vlm.diagnosis.records import Trial, find_trials, read_trial
from rllib_vlm.errors import RLlibVLMError

_LONGEST = 40  # characters of a present value; more says less
_EVENTS = 3  # signs, and alarms, told one by one; the picture has them all


def report(run: Path, *, out: Path | None = None, console: Console) -> dict[str, Any]:
    """Tells what happened in each trial of a run, and draws it.

    Args:
        run: a run's or a trial's folder.
        out: the picture's file; of several trials, the folder of their pictures. None is each trial's own folder.
        console: told in words.

    Returns:
        The same for machines.

    Raises:
        RLlibVLMError: no trial of it can be read, or a picture cannot be written.
    """
    folders = find_trials(run)
    several = len(folders) > 1
    if several and out is not None and out.is_file():
        raise RLlibVLMError(f"--out {out} is a file, and {run} holds {len(folders)} trials; give a folder")
    trials: list[Trial] = []
    unread: list[str] = []
    for folder in folders:
        try:
            trials.append(read_trial(folder))
        except RLlibVLMError as error:
            unread.append(str(error))
    if not trials:
        raise RLlibVLMError("\n".join(unread))
    told = []
    for trial in trials:
        findings = diagnose(trial)
        _print_trial(console, trial, findings)
        path = _picture_path(trial, out, several=several)
        is_drawn = draw(trial, findings, path)
        if is_drawn:
            console.print(f"picture: {path}", soft_wrap=True, markup=False, highlight=False)
        told.append(_as_json(trial, findings, path if is_drawn else None))
    for problem in unread:
        console.print(f"left out: {problem}", soft_wrap=True, markup=False, highlight=False)
    return {"run": str(run), "trials": told, "left_out": unread}


def overview(trial: Trial) -> list[str]:
    """What happened, before anything is made of it."""
    updates = trial.updates
    lines = []
    if len(updates):
        before = f", after {len(trial.imitation)} of imitation" if len(trial.imitation) else ""
        numbers = in_words([int(n) for n in updates.numbers])
        end = "" if trial.finished else " The run has not finished."
        lines.append(f"{len(updates)} updates of reinforcement learning ({numbers}){before}.{end}")
        lines += [line for line in (_course("success", updates[c.SUCCESS], "{:.0%}", best=True),
                                    _course("return", updates[c.RETURN], "{:.3g}", best=True),
                                    _course("entropy", updates[c.ENTROPY], "{:.3g}")) if line]  # fmt: skip
        if len(updates) < MIN_UPDATES:
            lines.append(
                f"That is too few to compare: what begins and ends is seen from {MIN_UPDATES} updates on."
            )
    elif len(trial.imitation):
        lines.append(f"{len(trial.imitation)} updates of imitation and none of reinforcement learning.")
        lines.append("The checks are about the latter: nothing was looked for.")
        lines += filter(None, [_course("imitation loss", trial.imitation[c.IMITATION_LOSS], "{:.3g}")])
    else:
        lines.append("No update of the policy is recorded.")
    if trial.evaluations:
        shown = (
            trial.evaluations
            if len(trial.evaluations) <= 4
            else [trial.evaluations[0], *trial.evaluations[-3:]]
        )
        told = ", ".join(f"{e.success:.1%} ({e.at.replace('_', ' ')}, update {e.update})" for e in shown)
        lines.append(f"held-out success: {told}")
    return lines + _guard(trial) + trial.notes


def _course(name: str, values: c.Values, form: str, *, best: bool = False) -> str:
    known = values[np.isfinite(values)]
    if not len(known):
        return ""
    first, last = levels(values)
    if np.isnan(first):
        first, last = known[0], known[-1]
    top = largest(running(values))
    highest = f", {form.format(top)} at best" if best and top > max(first, last) else ""
    return f"{name}: {form.format(first)} at first{highest}, {form.format(last)} at last"


def _guard(trial: Trial) -> list[str]:
    lines, many = [], set()
    for kind in ("sign", "alarm"):
        numbers = [event.update for event in trial.events if event.kind == kind]
        if len(numbers) > _EVENTS:
            many.add(kind)
            lines.append(f"guard: {len(numbers)} {kind}s in {in_words(numbers)}")
    shown = [event for event in trial.events if event.kind not in many]
    return lines + [f"guard at update {event.update}: {event.words}" for event in shown]


def _print_trial(console: Console, trial: Trial, findings: list[Finding]) -> None:
    console.print()
    console.print(Text(trial.folder.name or str(trial.folder), style="bold"))
    for line in overview(trial):
        console.print(Text(line))
    if not findings and len(trial.updates):
        told = any(event.kind != "sign" for event in trial.events)
        console.print(
            Text("Nothing was found beside what the guard saw.")
            if told
            else Text("Nothing was found.", style="bold green")
        )
    for number, finding in enumerate(findings, 1):
        console.print()
        block = Table.grid(padding=(0, 1))
        block.add_row(Text(f"{number}."), Text(f"{finding.title}, {finding.updates}", style="bold"))
        block.add_row("", Text(finding.message[0].upper() + finding.message[1:]))
        changes = Table.grid(padding=(0, 1))
        for change, value in finding.changes:
            changes.add_row(
                Text(change.setting, style="cyan", no_wrap=True), Text(f"{change.to}{_now(value)}")
            )
        block.add_row("", changes)
        console.print(block)


def _now(value: Any) -> str:
    if value is UNKNOWN:
        return ""
    text = (
        f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    )
    return f" (now {text})" if len(text) <= _LONGEST else ""


def _picture_path(trial: Trial, out: Path | None, *, several: bool) -> Path:
    if out is None:
        return trial.folder / PICTURE_FILE
    if several:
        return out / f"{trial.folder.name}.png"
    return out / PICTURE_FILE if out.is_dir() else out


def _as_json(trial: Trial, findings: list[Finding], picture: Path | None) -> dict[str, Any]:
    return {
        "trial": str(trial.folder),
        "updates": len(trial.updates),
        "imitation_updates": len(trial.imitation),
        "finished": trial.finished,
        "overview": overview(trial),
        "events": [{"event": e.kind, "update": e.update, "what": e.words} for e in trial.events],
        "findings": [
            {
                "name": f.name,
                "title": f.title,
                "message": f.message,
                "updates": list(f.numbers),
                "looks_at": list(f.looks_at),
                "changes": [_change_as_json(change.setting, change.to, value) for change, value in f.changes],
            }
            for f in findings
        ],
        "picture": None if picture is None else str(picture),
    }


def _change_as_json(setting: str, to: str, value: Any) -> dict[str, Any]:
    if value is UNKNOWN:
        return {"setting": setting, "to": to}
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:  # it holds NaN or infinity, for which JSON has no number
        value = str(value)
    return {"setting": setting, "to": to, "now": value}
