"""The success of a run over time, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_COLOURS = {"imitation": "#b0883a", "reinforcement learning": "#3b78b8"}


class Curve:
    """Collects what was reached when; time is minutes since the run began or was last resumed."""

    def __init__(self) -> None:
        self._training: dict[str, list[tuple[float, float]]] = {}
        self._evaluations: list[tuple[float, float, float, float, str]] = []

    def add_training(self, minutes: float, phase: str, success_rate: float | None) -> None:
        """Success of the training episodes of one iteration; in `phase` demonstrations are played by the expert."""
        if success_rate is not None:
            self._training.setdefault(phase, []).append((minutes, float(success_rate)))

    def add_evaluation(self, minutes: float, record: Mapping[str, Any]) -> None:
        """A record of `env.summary.summarize` with `at`."""
        if "success_rate" in record:
            values = (record["success_rate"], record["interval_low"], record["interval_high"])
            rate, low, high = (float(value) for value in values)
            self._evaluations.append((minutes, rate, low, high, str(record.get("at", "interval"))))

    def draw(self, path: Path) -> None:
        """Writes a PNG; what was there before is replaced whole."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.0, 4.5), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        for phase, points in self._training.items():
            minutes, rates = zip(*points, strict=True)
            axes.plot(
                minutes,
                rates,
                color=_COLOURS.get(phase),
                alpha=0.7,
                linewidth=1.2,
                label=f"training, {phase}",
            )
        for i, (minute, rate, low, high, at) in enumerate(self._evaluations):
            errors = [[max(0.0, rate - low)], [max(0.0, high - rate)]]
            label = "held-out episodes, 95% interval" if i == 0 else None
            axes.errorbar([minute], [rate], yerr=errors, fmt="o", color="black", capsize=4, label=label)
            side = -1 if i else 1  # the first label to the right of its point, the others to the left
            axes.annotate(
                f"{rate:.2f} ({at.replace('_', ' ')})",
                (minute, rate),
                (6 * side, 6),
                textcoords="offset points",
                ha="left" if side > 0 else "right",
            )
        axes.set(xlabel="minutes", ylabel="success rate", ylim=(-0.03, 1.03))
        axes.grid(alpha=0.3)
        if self._training or self._evaluations:
            axes.legend(loc="best", frameon=False)
        temporary = path.with_name(f".{path.name}.tmp")
        FigureCanvasAgg(figure).print_png(str(temporary))
        temporary.replace(path)
