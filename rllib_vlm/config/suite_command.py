"""What `rllib evaluate --suite` does from the command line to the table's path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from rllib_vlm.config import runner, suites
from rllib_vlm.config.suite_records import write_records
from rllib_vlm.config.suite_report import (
    HEADER,
    PICTURE_FILE,
    RESULTS_FILE,
    TABLE_FILE,
    draw,
    rows,
    write_table,
)
from rllib_vlm.config.suites import PlannedPart, PlannedSuite
from rllib_vlm.errors import RLlibVLMError
from rllib_vlm.files import write_json


def evaluate_suite(
    checkpoint: Path,
    name: str,
    *,
    parts: Sequence[str] = (),
    episodes: int | None = None,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    ray_address: str | None = None,
    num_cpus: int | None = None,
) -> Path:
    """Plays a suite, and writes its records, table and picture; see `suites.prepare` for the arguments.

    A part's records are on the disk as soon as it was played.

    Args:
        out: the folder to write; by default one beside the checkpoint, named after both.

    Returns:
        The table's file.

    Raises:
        RLlibVLMError: the folder holds a suite's results already, or cannot be written; and what `suites.prepare`
            raises.
    """
    folder = checkpoint.parent / f"{name.replace(':', '.')}_{checkpoint.name}" if out is None else out
    if (folder / TABLE_FILE).exists():
        raise RLlibVLMError(f"{folder} holds results of a suite already; give --out another folder")
    plan = suites.prepare(checkpoint, name, parts=parts, episodes=episodes, overrides=overrides)
    for reason in plan.left_out.values():
        typer.echo(f"note: {reason}; not played", err=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        runner.start_ray(address=ray_address, num_cpus=num_cpus, dashboard=False)
        totals = _play(plan, folder)
        write_json(folder / RESULTS_FILE, {"suite": name, "left_out": dict(plan.left_out), "parts": totals})
        draw(folder / PICTURE_FILE, totals)
        write_table(folder / TABLE_FILE, totals, plan.left_out)
    except OSError as error:
        raise RLlibVLMError(
            f"cannot write to {folder}: {error.strerror}; give --out another place"
        ) from error
    table = Table(*HEADER)
    for cells in rows(totals):
        table.add_row(*cells)
    Console().print(table)
    return folder / TABLE_FILE


def _play(plan: PlannedSuite, folder: Path) -> list[dict[str, Any]]:
    totals = []
    live = Console(stderr=True).is_terminal  # a log shows no bars before they are full
    if not live:
        _say(
            f"playing {', '.join(f'{p.episodes} of {p.part.name}' for p in plan.parts)}; this may take minutes"
        )
    with _bars(plan) as advance:
        for planned, updates, transcripts in plan.play(advance):
            conditions = {**plan.conditions(planned), "num_updates": updates}
            file = folder / f"{planned.part.name}.jsonl"
            totals.append(write_records(file, transcripts, conditions))
            if not live:
                _say(f"{planned.part.name}: played, {file}")
    return totals


def _say(line: str) -> None:
    typer.echo(line, err=True)


@contextmanager
def _bars(plan: PlannedSuite) -> Iterator[Callable[[PlannedPart, int], object]]:
    """A progress bar for each part on standard error."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks = {
            p.part.name: progress.add_task(p.part.name, total=p.episodes, start=False) for p in plan.parts
        }

        def advance(planned: PlannedPart, count: int) -> None:
            progress.start_task(tasks[planned.part.name])
            progress.advance(tasks[planned.part.name], count)

        yield advance
