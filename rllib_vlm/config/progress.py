"""One line per training iteration instead of Tune's status tables, and when a trial ends."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TextIO

from ray.tune import Callback, Stopper
from ray.tune.utils.util import flatten_dict

from rllib_vlm.errors import did_you_mean

# Header, the result keys it may come from (the first present one is shown), format, width.
COLUMNS: tuple[tuple[str, tuple[str, ...], str, int], ...] = (
    ("iter", ("training_iteration",), "d", 5),
    ("time", ("time_total_s",), "time", 8),
    ("phase", ("iteration_phase", "phase"), "s", 10),
    ("steps", ("num_env_steps_sampled_lifetime", "env_runners/num_env_steps_sampled_lifetime"), "count", 7),
    ("success", ("env_runners/success_rate",), ".3f", 7),
    ("return", ("env_runners/episode_return_mean",), ".2f", 7),
    ("turns", ("env_runners/episode_len_mean",), ".1f", 6),
    ("no parse", ("env_runners/parse_failure_rate",), ".3f", 8),
    ("imitation", ("learners/default_policy/imitation_loss",), ".4f", 9),
    ("policy", ("learners/default_policy/policy_loss",), ".4f", 8),
    ("kl", ("learners/default_policy/approx_kl", "learners/default_policy/mean_kl_loss"), ".4f", 7),
    ("entropy", ("learners/default_policy/entropy",), ".3f", 7),
    ("held-out", ("evaluation/success_rate", "evaluation/env_runners/episode_return_mean"), ".3f", 8),
)
_HEADER_EVERY = 20


class ProgressLines(Callback):
    """Prints the main metrics of every result on one line, with the trial's name when there are several."""

    def __init__(self, *, several_trials: bool = False) -> None:
        self.several_trials = several_trials
        self._columns: list[int] = []
        self._printed = 0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.several_trials:
            values = ", ".join(f"{k}={v}" for k, v in (trial.evaluated_params or {}).items())
            _say(f"{trial.trial_id}: started{' with ' + values if values else ''}")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict, **info: Any
    ) -> None:
        flat = flatten_dict(result)
        present = [i for i, (_, keys, _, _) in enumerate(COLUMNS) if any(k in flat for k in keys)]
        if not set(present) <= set(self._columns):
            self._columns, self._printed = sorted({*present, *self._columns}), 0
        if self._printed % _HEADER_EVERY == 0:
            _say(self._prefix("trial") + " ".join(f"{COLUMNS[i][0]:>{COLUMNS[i][3]}}" for i in self._columns))
        self._printed += 1
        cells = []
        for i in self._columns:
            _, keys, form, width = COLUMNS[i]
            value = next((flat[k] for k in keys if k in flat), None)
            cells.append(f"{_cell(value, form):>{width}}")
        _say(self._prefix(trial.trial_id) + " ".join(cells))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        _say(f"{trial.trial_id}: failed, see {trial.error_file or 'the log above'}")

    def _prefix(self, text: str) -> str:
        return f"{text:<14} " if self.several_trials else ""


class MetricStopper(Stopper):
    """Ends a trial when any metric reaches its threshold.

    Tune's own dict form raises on a metric that is not in every result; evaluation metrics are only there
    on evaluation iterations. Here such a metric is waited for, and a name that looks misspelt is told once.
    """

    def __init__(self, thresholds: dict[str, float]) -> None:
        self.thresholds = dict(thresholds)
        self._told = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        if self.reached(result):
            return True
        if self._told:
            return False
        flat = {**flatten_dict(result), **result}
        for name in self.thresholds:
            if name not in flat:
                self._told = True
                _say(
                    f"stop: {name!r} is not in the first result; waiting for it.{did_you_mean(name, map(str, flat))}"
                )
        return False

    def reached(self, result: Mapping[str, Any]) -> dict[str, float]:
        """The thresholds that a result reaches, by metric."""
        flat = {**flatten_dict(dict(result)), **result}
        values = {name: flat.get(name) for name in self.thresholds}
        return {
            name: self.thresholds[name]
            for name, value in values.items()
            if isinstance(value, bool | int | float) and value >= self.thresholds[name]
        }

    def stop_all(self) -> bool:
        return False


def _cell(value: Any, form: str) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "-"
    if form == "s":
        return str(value)
    if form == "time":
        minutes, seconds = divmod(int(value), 60)
        return (
            f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
            if minutes >= 60
            else f"{minutes}:{seconds:02d}"
        )
    if form == "count":
        return f"{int(value)}" if value < 100_000 else f"{value / 1000:.0f}k"
    return format(int(value) if form == "d" else float(value), form)


def _say(line: str, stream: TextIO | None = None) -> None:
    stream = stream or sys.stdout
    stream.write(line + "\n")
    stream.flush()
