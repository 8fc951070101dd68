"""A suite's totals as a Markdown table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rllib_vlm.files import write_text

TABLE_FILE, PICTURE_FILE, RESULTS_FILE = "table.md", "suite.png", "results.json"
HEADER = ("part", "episodes", "success", "step accuracy", "reward", "steps", "verification steps")
_BARS = (("success", "success", "#2b5f8f"), ("step_accuracy", "step accuracy", "#9db8cf"))


def rows(totals: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The cells below `HEADER`, in words."""
    return [
        (
            str(total["part"]),
            str(total["episodes"]),
            _rate(total["success"]),
            _rate(total["step_accuracy"]),
            f"{total['reward']['mean']:.2f} ± {total['reward']['deviation']:.2f}",
            str(total["steps"]),
            "" if total["verification_steps"] is None else str(total["verification_steps"]),
        )
        for total in totals
    ]


def write_table(path: Path, totals: Sequence[Mapping[str, Any]], left_out: Mapping[str, str]) -> None:
    """Writes the Markdown table, with what was played and how above it.

    Raises:
        OSError: the disk is full or fails.
    """
    first = totals[0]
    decoding = ", ".join(f"{k} {v}" for k, v in first["decoding"].items() if v not in (None, []))
    lines = [
        f"# {first['suite']}: {Path(first['checkpoint']).name}",
        "",
        f"Checkpoint `{first['checkpoint']}`, {first['num_updates']} updates of reinforcement learning. "
        f"Decoding: {decoding}.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (HEADER, ("---",) * len(HEADER), *rows(totals))),
        "",
        "In brackets: Wilson intervals, 95%. Reward: mean and standard deviation of the episodes' sums.",
        *(f"Not played: {reason}." for reason in left_out.values()),
    ]
    write_text(path, "\n".join(lines) + "\n")


def draw(path: Path, totals: Sequence[Mapping[str, Any]]) -> None:
    """Writes a PNG: a bar for each part's success and step accuracy, with their intervals.

    Raises:
        OSError: the disk is full or fails.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 1.8 * len(totals), 3.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    for i, (key, label, colour) in enumerate(_BARS):
        shown = [(x, total[key]) for x, total in enumerate(totals) if total[key] is not None]
        if not shown:
            continue
        rates = [rate["rate"] for _, rate in shown]
        lengths = [
            [max(0.0, rate["rate"] - rate["interval"][0]) for _, rate in shown],
            [max(0.0, rate["interval"][1] - rate["rate"]) for _, rate in shown],
        ]
        places = [x + 0.36 * (i - 0.5) for x, _ in shown]
        axes.bar(
            places,
            rates,
            0.34,
            yerr=lengths,
            capsize=3,
            color=colour,
            ecolor="#444444",
            label=label,
            zorder=2,
        )
    axes.set_xticks(
        range(len(totals)), [f"{t['part'].replace('_', ' ')}\n{t['episodes']} episodes" for t in totals]
    )
    axes.set_ylim(0.0, 1.05)
    axes.set_title(f"{totals[0]['suite']}, {totals[0]['num_updates']} updates", fontsize=10, loc="left")
    axes.grid(axis="y", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    temporary = path.with_name(f".{path.name}.tmp")
    FigureCanvasAgg(figure).print_png(str(temporary))
    temporary.replace(path)


def _rate(rate: Mapping[str, Any] | None) -> str:
    if rate is None:
        return ""
    low, high = (100.0 * bound for bound in rate["interval"])
    return f"{100.0 * rate['rate']:.1f}% [{low:.1f}, {high:.1f}]"
