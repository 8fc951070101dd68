"""The success of a run over time, as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rllib_vlm.callbacks.metrics import look_up

_IMITATION = "learners/default_policy/imitation_loss"
_COLOURS = {"imitation": "#b0883a", "reinforcement learning": "#3b78b8"}


class Curve:
    """Collects what was reached when; time is minutes that the run has been at work.

    Attributes:
        training: (minutes, success rate) of iterations, by phase.
        evaluations: (minutes, success rate, low and high end of its interval, milestone) of evaluations.
    """

    def __init__(self) -> None:
        self.training: dict[str, list[tuple[float, float]]] = {}
        self.evaluations: list[tuple[float, float, float, float, str]] = []

    def add_records(self, records: Iterable[Mapping[str, Any]]) -> float:
        """Iterations of before, as `result.json` has them, in their order; returns the minutes they took."""
        minutes = 0.0
        for record in records:
            minutes += (_number(record.get("time_this_iter_s")) or 0.0) / 60.0
            evaluation = record.get("evaluation")
            if isinstance(evaluation, Mapping):
                self.add_evaluation(minutes, evaluation)
            self.add_training(minutes, record)
        return minutes

    def add_training(self, minutes: float, result: Mapping[str, Any]) -> None:
        """Success of the training episodes of one iteration; in imitation, demonstrations are the expert's."""
        phase = "reinforcement learning" if look_up(result, _IMITATION) is None else "imitation"
        success = _number(look_up(result, "env_runners/success_rate"))
        if success is not None:
            self.training.setdefault(phase, []).append((minutes, success))

    def add_evaluation(self, minutes: float, record: Mapping[str, Any]) -> None:
        """A record of `env.summary.summarize` with `at`."""
        rate, low, high = (
            _number(record.get(key)) for key in ("success_rate", "interval_low", "interval_high")
        )
        if rate is not None and low is not None and high is not None:
            self.evaluations.append((minutes, rate, low, high, str(record.get("at", "interval"))))

    def draw(self, path: Path) -> None:
        """Writes a PNG; what was there before is replaced whole."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.0, 4.5), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        for phase, points in self.training.items():
            minutes, rates = zip(*points, strict=True)
            axes.plot(
                minutes,
                rates,
                color=_COLOURS.get(phase),
                alpha=0.7,
                linewidth=1.2,
                label=f"training, {phase}",
            )
        for i, (minute, rate, low, high, at) in enumerate(self.evaluations):
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
        if self.training or self.evaluations:
            axes.legend(loc="best", frameon=False)
        temporary = path.with_name(f".{path.name}.tmp")
        FigureCanvasAgg(figure).print_png(str(temporary))
        temporary.replace(path)


def _number(value: Any) -> float | None:
    """A finite number; files may hold anything."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
