"""The study's table and curves, from the points of its runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rllib_vlm.callbacks.statistics import newcombe_interval
from rllib_vlm.env.summary import wilson_interval

Points = Sequence[Mapping[str, Any]]  # of one run
_LABELS = {"rl": "RL", "sft": "SFT"}
_COLOURS = {"rl": "#2b5f8f", "sft": "#c2703d"}
_RATES = {"success": "success", "step_accuracy": "step accuracy"}


def table(arms: Mapping[str, Sequence[Points]], parts: Sequence[str]) -> str:
    """Markdown: a row a test, with the start and both ends, pooled over the seeds; Wilson's intervals, 95%."""
    header = ["", "start", *(f"after {_LABELS[arm]}" for arm in arms), "RL minus SFT"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    start = next(iter(arms.values()))
    for part in parts:
        for key, label in _RATES.items():
            cells = [_cell(_pooled(start, 0, part, key))]
            cells += [_cell(_pooled(runs, -1, part, key)) for runs in arms.values()]
            cells.append(_difference(arms, part, key)[1])
            lines.append(f"| {part.replace('_', ' ')}: {label} | {' | '.join(cells)} |")
    for what, form in (("cpu_s", "{:.0f}"), ("tokens", "{:,.0f}")):
        means = [form.format(fmean(points[-1][what] for points in runs)) for runs in arms.values()]
        name = {"cpu_s": "CPU-seconds a run", "tokens": "tokens learnt from a run"}[what]
        lines.append(f"| {name} | | {' | '.join(means)} | |")
    return "\n".join(lines) + "\n"


def verdicts(
    arms: Mapping[str, Sequence[Points]], parts: Sequence[str]
) -> Iterator[tuple[str, float, dict[str, str]]]:
    """Each test's name, what success differs by at the end (RL minus SFT, in points), and its figures in words."""
    start = next(iter(arms.values()))
    for part in parts:
        cells = {"start": _cell(_pooled(start, 0, part, "success"))}
        cells |= {_LABELS[arm]: _cell(_pooled(runs, -1, part, "success")) for arm, runs in arms.items()}
        difference, cells["RL minus SFT"] = _difference(arms, part, "success")
        yield part, difference, cells


def draw(path: Path, arms: Mapping[str, Sequence[Points]], parts: Sequence[str]) -> None:
    """Writes a PNG: a column a test, success above step accuracy, over CPU-seconds since the start.

    Thin lines are seeds, thick ones their mean at each test.

    Raises:
        OSError: the disk is full or fails.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.9 * len(parts) + 0.6, 5.0), dpi=110, layout="constrained")
    grid = figure.subplots(len(_RATES), len(parts), sharex=True, sharey=True, squeeze=False)
    for column, part in enumerate(parts):
        for row, (key, label) in enumerate(_RATES.items()):
            axes = grid[row][column]
            for arm, runs in arms.items():
                curves = [[(p["cpu_s"], p["tests"][part][key]["rate"]) for p in points] for points in runs]
                for curve in curves:
                    axes.plot(*zip(*curve, strict=True), color=_COLOURS[arm], linewidth=0.7, alpha=0.45)
                mean = [tuple(map(fmean, zip(*at, strict=True))) for at in zip(*curves, strict=True)]
                axes.plot(
                    *zip(*mean, strict=True), color=_COLOURS[arm], linewidth=2, marker="o", markersize=4,
                    label=_LABELS[arm],
                )  # fmt: skip
            axes.set_ylim(-0.03, 1.03)
            axes.grid(alpha=0.25, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            if row == 0:
                axes.set_title(part.replace("_", " "), fontsize=10, loc="left")
            if column == 0:
                axes.set_ylabel(label)
    for axes in grid[-1]:
        axes.set_xlabel("CPU-seconds since the start")
    grid[0][0].legend(frameon=False, fontsize=8)
    temporary = path.with_name(f".{path.name}.tmp")
    FigureCanvasAgg(figure).print_png(str(temporary))
    temporary.replace(path)


def _pooled(runs: Sequence[Points], at: int, part: str, key: str) -> tuple[int, int]:
    """Of all seeds: how many, of how many."""
    rates = [points[at]["tests"][part][key] for points in runs]
    return sum(rate["count"] for rate in rates), sum(rate["of"] for rate in rates)


def _cell(rate: tuple[int, int]) -> str:
    count, of = rate
    low, high = (100.0 * bound for bound in wilson_interval(count, of))
    return f"{100.0 * count / of if of else 0.0:.1f}% ({low:.1f} to {high:.1f})"


def _difference(arms: Mapping[str, Sequence[Points]], part: str, key: str) -> tuple[float, str]:
    """RL minus SFT at the end, in points; Newcombe's interval."""
    rl, sft = (_pooled(arms[arm], -1, part, key) for arm in ("rl", "sft"))
    points = 100.0 * (rl[0] / max(rl[1], 1) - sft[0] / max(sft[1], 1))
    low, high = (100.0 * bound for bound in newcombe_interval(*rl, *sft))
    return points, f"{points:+.1f} ({low:.1f} to {high:.1f})"
