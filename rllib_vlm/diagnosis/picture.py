"""The curves of a trial as small multiples over its updates, with what the diagnosis found marked in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rllib_vlm.diagnosis import curves as c
from rllib_vlm.diagnosis.curves import Curves, Mask, stretches
from rllib_vlm.diagnosis.finding import Finding
from rllib_vlm.diagnosis.records import Trial
from rllib_vlm.errors import RLlibVLMError

PICTURE_FILE = "diagnosis.png"
_COLUMNS = 3
_DECADES = 100.0  # between the least and the largest from which on an axis is logarithmic
_LINE, _FAINT, _LEFT = "#2b5f8f", "#9db8cf", "#b9b9b9"
# Of the findings, in their order; the first ones, which are the gravest, are the strongest.
_MARKS = ("#d1495b", "#e08e2b", "#7b5ea7", "#3a9d6e", "#c2569b", "#8a6d3b", "#2a9fb5", "#6b7a8f")
_EVENTS: dict[str, tuple[dict[str, Any], str]] = {  # kind: how it is drawn, and what the legend calls it
    "sign": ({"color": "#c9c9c9", "linestyle": ":", "linewidth": 0.8}, "guard: one sign"),
    "alarm": ({"color": "#e08e2b", "linestyle": ":", "linewidth": 0.8}, "guard: alarm"),
    "rollback": ({"color": "#6a3d9a", "linestyle": "--", "linewidth": 1.3}, "guard: went back from here"),
    "stopped": ({"color": "black", "linestyle": "-", "linewidth": 1.6}, "guard: stopped the run"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One of the small multiples."""

    title: str
    metric: str
    beside: str | None = None  # drawn faintly: the largest of what `metric` is the mean of, or the whole
    share: bool = False  # of 1
    from_zero: bool = False
    log: bool = False  # where the values span decades
    asked: bool = False  # drawn only where a finding looks at it


PANELS: tuple[Panel, ...] = (
    Panel(title="success rate", metric=c.SUCCESS, share=True),
    Panel(title="return", metric=c.RETURN),
    Panel(title="turns an episode (faint: longest)", metric=c.TURNS, beside=c.TURNS_MAX, from_zero=True),
    Panel(title="imitation loss, nats a token", metric=c.IMITATION_LOSS),
    Panel(title="grounding loss, nats", metric=c.GROUNDING_LOSS),
    Panel(title="entropy, nats a token", metric=c.ENTROPY, from_zero=True),
    Panel(title="KL of an update, nats a token", metric=c.KL, from_zero=True),
    Panel(title="largest ratio", metric=c.RATIO_MAX, from_zero=True, log=True),
    Panel(title="clipped tokens, share", metric=c.CLIP_FRACTION, share=True),
    Panel(title="learning rate", metric=c.LEARNING_RATE, from_zero=True),
    Panel(title="gradient norm (faint: largest)", metric=c.GRAD_NORM, beside=c.GRAD_NORM_MAX, from_zero=True),
    Panel(title="answer length, tokens", metric=c.ANSWER_TOKENS, from_zero=True),
    Panel(title="answers that do not parse, share", metric=c.PARSE_FAILURES, share=True),
    Panel(title="answers cut at the limit, share", metric=c.CUT_ANSWERS, share=True),
    Panel(title="explained variance", metric=c.EXPLAINED),
    Panel(title="value loss", metric=c.VALUE_LOSS, from_zero=True, log=True),
    Panel(title="spread of returns within groups", metric=c.GROUP_SPREAD),
    Panel(title="groups without spread (faint: all)", metric=c.GROUPS_ALIKE, beside=c.GROUPS),
    Panel(title="groups of one (faint: all)", metric=c.GROUPS_OF_ONE, beside=c.GROUPS, asked=True),
    Panel(title="largest |log-ratio| before a step", metric=c.FIRST_LOG_RATIO, from_zero=True, log=True),
    Panel(title="sampler gap, nats a token", metric=c.SAMPLER_GAP, from_zero=True),
    Panel(
        title="largest |log-ratio|, sampler to learner", metric=c.MISMATCH_LOG_RATIO, from_zero=True, log=True
    ),
    Panel(title="tokens read", metric=c.TOKENS, from_zero=True, asked=True),
    Panel(title="skipped optimizer steps", metric=c.SKIPPED_STEPS, asked=True),
    Panel(title="simulator crashes", metric=c.CRASHES, asked=True),
    Panel(title="simulator timeouts", metric=c.TIMEOUTS, asked=True),
)


def draw(trial: Trial, findings: Sequence[Finding], path: Path) -> bool:
    """Writes a PNG of the updates of reinforcement learning, or of imitation where there are no others.

    Returns:
        Whether there was anything to draw.

    Raises:
        RLlibVLMError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    updates, kind = (
        (trial.updates, "reinforcement learning") if len(trial.updates) else (trial.imitation, "imitation")
    )
    panels = [panel for panel in PANELS if _is_drawn(panel, updates, findings)]
    if not panels:
        return False
    rows = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(13.0, 1.0 + 1.9 * rows + 0.22 * len(findings)), dpi=110, layout="constrained")
    grid = figure.subplots(rows, _COLUMNS, sharex=True, squeeze=False).flatten()
    for axes, panel in zip(grid, panels, strict=False):
        _draw_panel(axes, panel, updates, findings)
        for event in trial.events:
            if event.kind in _EVENTS:
                axes.axvline(event.update, zorder=1, **_EVENTS[event.kind][0])
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for i, axes in enumerate(grid[: len(panels)]):
        if i + _COLUMNS >= len(panels):  # the lowest of its column: nothing is drawn below it
            axes.set_xlabel(f"update of {kind}")
            axes.xaxis.set_tick_params(labelbottom=True)
    figure.suptitle(trial.folder.name, fontsize=11, x=0.01, ha="left")
    _legend(figure, trial, findings)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        FigureCanvasAgg(figure).print_png(str(temporary))
        temporary.replace(path)
    except OSError as error:
        raise RLlibVLMError(f"cannot write {path}: {error.strerror}; give --out another place") from error
    return True


def _is_drawn(panel: Panel, updates: Curves, findings: Sequence[Finding]) -> bool:
    if panel.asked and not any(panel.metric in finding.looks_at for finding in findings):
        return False
    return bool(np.isfinite(updates[panel.metric]).any())


def _draw_panel(axes: Any, panel: Panel, updates: Curves, findings: Sequence[Finding]) -> None:
    values = _drawable(updates[panel.metric])
    known = values[np.isfinite(values)]
    log = panel.log and len(known) > 0 and known.min() > 0.0 and known.max() > _DECADES * known.min()
    beside = _drawable(updates[panel.beside]) if panel.beside is not None else None
    if beside is not None:
        _draw_line(axes, updates, beside, _FAINT, 0.8)
    _draw_line(axes, updates, values, _LINE, 1.3)
    axes.margins(x=0.02)
    if log:
        axes.set_yscale("log")
    else:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if panel.from_zero or panel.share:
            _start_at_zero(
                axes, known if beside is None else np.concatenate([known, beside]), share=panel.share
            )
    marked = [
        (number, finding)
        for number, finding in enumerate(findings, 1)
        if panel.metric in finding.looks_at or panel.beside in finding.looks_at
    ]
    _make_room(axes, len(marked), log=log)
    for row, (number, finding) in enumerate(marked):
        _mark(axes, updates, values, finding.where, number, row)
    axes.set_title(panel.title, fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _start_at_zero(axes: Any, values: c.Values, *, share: bool) -> None:
    """Shares that matter go up to 1, others at least to a twentieth, so that next to nothing looks like it."""
    top = max(0.0, float(np.nanmax(values)))
    full = 1.0 if share and top > 0.3 else max(1.1 * top, 0.05) if share else 1.1 * top or 1.0
    axes.set_ylim(
        min(-0.03 * full, float(np.nanmin(values))), 1.03 * full
    )  # estimates of a KL may be below 0
    if full == 1.0:
        axes.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0])


def _make_room(axes: Any, rows: int, *, log: bool) -> None:
    """Above the curve, for as many rows of numbers."""
    low, high = axes.get_ylim()
    share = 0.14 * rows
    axes.set_ylim(low, high * (high / low) ** share if log else high + share * (high - low))


def _draw_line(axes: Any, updates: Curves, values: c.Values, colour: str, width: float) -> None:
    """One line per stretch between two returns of the run; what it went back behind is grey."""
    numbers, kept = updates.numbers, updates.kept
    starts = [0, *(np.flatnonzero(np.diff(numbers) <= 0) + 1), len(numbers)]
    for begin, end in pairwise(starts):
        piece = slice(begin, end)
        marker = "." if end - begin < 3 else None
        left = np.where(kept[piece], np.nan, values[piece])
        axes.plot(numbers[piece], left, color=_LEFT, linewidth=width, marker=marker, zorder=2)
        stayed = np.where(kept[piece], values[piece], np.nan)
        axes.plot(numbers[piece], stayed, color=colour, linewidth=width, marker=marker, zorder=3)


def _mark(axes: Any, updates: Curves, values: c.Values, where: Mask, number: int, row: int) -> None:
    """A band over the suspicious updates, a dot on each, and the finding's number once."""
    colour = _MARKS[(number - 1) % len(_MARKS)]
    bands = stretches([int(n) for n in updates.numbers[where]])
    for first, last in bands:
        axes.axvspan(first - 0.5, last + 0.5, color=colour, alpha=0.13, linewidth=0, zorder=0)
    axes.plot(updates.numbers[where], values[where], ".", color=colour, markersize=4, zorder=4)
    widest = max(bands, key=lambda band: band[1] - band[0])
    axes.annotate(
        str(number),
        ((widest[0] + widest[1]) / 2, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, -1 - 13 * row),
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize=8,
        color="white",
        bbox={"boxstyle": "circle,pad=0.2", "facecolor": colour, "edgecolor": "none"},
        zorder=5,
    )


def _legend(figure: Any, trial: Trial, findings: Sequence[Finding]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(
            color=_MARKS[(number - 1) % len(_MARKS)],
            alpha=0.6,
            label=f"{number}  {finding.title} ({finding.updates})",
        )
        for number, finding in enumerate(findings, 1)
    ]
    kinds = {event.kind for event in trial.events}
    handles += [
        Line2D([], [], label=label, **style) for kind, (style, label) in _EVENTS.items() if kind in kinds
    ]
    if not trial.updates.kept.all():
        handles.append(Line2D([], [], color=_LEFT, label="updates that the run went back behind"))
    if not findings:
        label = (
            "nothing was found" if len(trial.updates) else "imitation alone, in which nothing is looked for"
        )
        handles.append(Line2D([], [], linestyle="none", label=label))
    figure.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False, fontsize=9)


def _drawable(values: c.Values) -> c.Values:
    return np.where(np.isfinite(values), values, np.nan)
