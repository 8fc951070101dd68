"""Results that are kept: a file a benchmark in `benchmarks/results/`, the table of them and the picture."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks._targets import TARGETS, Target
from rllib_vlm.errors import RLlibVLMError
from rllib_vlm.files import write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "images" / "performance.png"
_BEGIN, _END = "<!-- results: written by `python -m benchmarks plot` -->", "<!-- end of results -->"
_GOOD, _BAD, _PALE = "#2f7d4f", "#b8433b", "#9aa3ad"
_PHASES = {  # of sampling, of learning, between the two
    "generating": "#3b78b8",
    "simulating": "#7fb0dd",
    "rendering prompts": "#b9d3ea",
    "sampling, the rest": "#d8e4ee",
    "credit": "#e3c98b",
    "rows and packing": "#c9a94f",
    "learning": "#b0883a",
    "weights to engines": "#6b8e5a",
}


def keep(result: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Writes a result with commit, date and machine, in place of the one before, and returns where."""
    record = {
        **result,
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
    }
    path = folder / f"{result['name']}.json"
    write_json(path, record)
    return path


def kept(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """All results that are kept, by name.

    Raises:
        RLlibVLMError: a file holds no result.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        missing = [k for k in ("name", "value", "unit", "commit", "date", "machine") if k not in record]
        if missing:
            raise RLlibVLMError(f"{path} has no {', '.join(missing)}: write it with --keep")
        found[path.stem] = record
    return found


def commit() -> str:
    """The commit whose code runs, and whether code was changed since."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changed = git(
            "status", "--porcelain", "--", "rllib_vlm", "configs", "tuned_examples", "benchmarks/*.py"
        )
        return git("rev-parse", "--short", "HEAD") + (" and changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> dict[str, Any]:
    """The processor and how many cores of it, without names or paths."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown"
    )
    return {"cpu": model, "cores": os.cpu_count()}


def rows(results: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Target, float | None]]:
    """(benchmark, target, figure) of the table of targets; no figure where nothing is kept."""
    return [
        (name, target, target.figure(results[name]) if name in results else None)
        for name, targets in TARGETS.items()
        for target in targets
    ]


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Targets and results in Markdown."""
    lines = ["| benchmark | figure | target | measured | commit, date |", "|---|---|---|---|---|"]
    for name, target, figure in rows(results):
        bound = f"at {target.way} {target.bound:g}"
        if figure is None:
            lines.append(f"| `{name}` | {target.what} | {bound} | not yet | |")
            continue
        shown = f"{figure:.3g}" + ("" if target.holds(figure) else " (missed)")
        record = results[name]
        lines.append(
            f"| `{name}` | {target.what} | {bound} | {shown} | {record['commit']}, {record['date']} |"
        )
    return "\n".join(lines)


def with_table(page: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with its table as the results say.

    Raises:
        RLlibVLMError: the page has no place for it.
    """
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise RLlibVLMError(f"the page has no lines {_BEGIN!r} and {_END!r} for the table to stand between")
    return f"{before}{begin}\n{table(results)}\n{end}{after}"


def publish() -> list[Path]:
    """Writes table and picture anew; returns what was written."""
    results = kept()
    write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8"), results))
    draw(results, PICTURE)
    return [PAGE, PICTURE]


def draw(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """A PNG: what was measured beside the targets, and where the time of an iteration goes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measured = [(name, target, figure) for name, target, figure in rows(results) if figure is not None]
    figure = Figure(figsize=(9.0, 1.9 + 0.34 * max(1, len(measured))), dpi=120, layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=[max(3, len(measured)), 2])
    for y, (_, target, value) in enumerate(reversed(measured)):
        colour = _GOOD if target.holds(value) else _BAD
        upper.plot([target.bound, value], [y, y], color=_PALE, linewidth=1.0, zorder=1)
        upper.plot(target.bound, y, marker="|", markersize=12, color="black", zorder=2)
        upper.plot(value, y, marker="o", markersize=6, color=colour, zorder=3)
        right = value >= target.bound
        upper.annotate(
            f"{value:.3g}",
            (value, y),
            (7 if right else -7, 0),
            textcoords="offset points",
            ha="left" if right else "right",
            va="center",
            fontsize=8,
            color=colour,
        )
    upper.set_yticks(
        range(len(measured)), [f"{name}: {t.what}" for name, t, _ in reversed(measured)], fontsize=8
    )
    upper.set(xscale="log", ylim=(-0.6, len(measured) - 0.4), title="measured (dot) and target (bar)")
    upper.margins(x=0.15)
    upper.grid(alpha=0.3, axis="x")
    _draw_profile(lower, results.get("profile"))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    FigureCanvasAgg(figure).print_png(str(temporary))
    temporary.replace(path)


def _draw_profile(axes: Any, profile: Mapping[str, Any] | None) -> None:
    """One bar, a part a phase."""
    axes.set_title("where the time of one iteration goes")
    axes.set_yticks([])
    if profile is None:
        axes.text(0.5, 0.5, "not measured yet", ha="center", transform=axes.transAxes)
        return
    left = 0.0
    for phase, seconds in profile["details"]["phases"].items():
        axes.barh(0, seconds, left=left, color=_PHASES.get(phase, _PALE), label=f"{phase} {seconds:.2g} s")
        left += seconds
    axes.set(xlabel="seconds", xlim=(0, left))
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.55),
        ncols=3,
        fontsize=7.5,
        columnspacing=1.0,
        frameon=False,
    )
