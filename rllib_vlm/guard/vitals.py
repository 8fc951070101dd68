"""Vital signs of a run: whether an update's figures are those of a policy that goes to pieces.

Each figure is compared with its own last healthy updates by a z-score that outliers cannot widen::

    z = (x - median) / max(1.4826 * median(|w - median|), least)        over the window w

`least` is the spread below which a figure is taken to stand still, so that a run which hardly varies does not
alarm at its first small move. 1.4826 makes the median deviation that of a normal distribution's standard
deviation (Rousseeuw and Croux 1993, "Alternatives to the Median Absolute Deviation").

What collapses look like is from RAGEN's echo trap (arXiv 2504.20073: return and in-group spread fall, entropy
falls, gradients grow) and from runs of our own (docs/results.md: entropy and unparsable answers rise together).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from rllib_vlm.callbacks.metrics import look_up
from rllib_vlm.errors import did_you_mean

_LEARNER = "learners/default_policy/"
_NORMAL = 1.4826


@dataclass(frozen=True, slots=True, kw_only=True)
class Vital:
    """One figure and how it goes bad.

    A vital that `decides` is harm itself: the run goes back for it. The others are signs, which are told and
    on which nothing is done until they come together with another.
    """

    name: str
    path: str  # in a training result
    worse: Literal["low", "high", "both"]
    least: float  # spread that counts as none
    relative: bool = False  # `least` is a share of the median
    decides: bool = False
    floor: float = -math.inf  # beyond these it is bad whatever it was before
    ceiling: float = math.inf
    bounds_decide: bool = False  # beyond them it is harm


VITALS: tuple[Vital, ...] = (
    Vital(name="success", path="env_runners/success_rate", worse="low", least=0.08, decides=True),
    Vital(name="return", path="env_runners/episode_return_mean", worse="low", least=0.1, relative=True),
    Vital(
        name="parse_failures", path="env_runners/parse_failure_rate", worse="high", least=0.05, decides=True,
        ceiling=0.5,
    ),
    Vital(
        name="truncated_answers", path="env_runners/truncated_response_rate", worse="high", least=0.05,
        decides=True, ceiling=0.5,
    ),
    Vital(
        name="response_length", path="env_runners/response_length", worse="both", least=0.1, relative=True
    ),
    Vital(name="group_spread", path="env_runners/group_return_std", worse="low", least=0.15, relative=True),
    Vital(name="entropy", path=f"{_LEARNER}entropy", worse="both", least=0.15, relative=True),
    Vital(name="explained_variance", path=f"{_LEARNER}explained_variance", worse="low", least=0.15, floor=-2.0),
    Vital(name="sampler_gap", path=f"{_LEARNER}sampler_gap", worse="high", least=0.01, decides=True, ceiling=0.5),
    Vital(name="kl", path=f"{_LEARNER}approx_kl", worse="high", least=0.01, ceiling=1.0),
    Vital(name="grad_norm", path=f"{_LEARNER}grad_norm", worse="high", least=0.5, relative=True),
    Vital(name="skipped_steps", path=f"{_LEARNER}num_skipped_steps", worse="high", least=0.5),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A vital that is bad in one update."""

    vital: str
    value: float
    usual: float  # median of the window; NaN before there is one
    z: float  # in the direction that is worse; infinite where an absolute bound is crossed
    decides: bool

    def words(self) -> str:
        before = "" if math.isnan(self.usual) else f", usually {self.usual:.4g}"
        return f"{self.vital} {self.value:.4g}{before}"


@dataclass(slots=True)
class Monitor:
    """Looks at one update after the other.

    Args:
        window: healthy updates that are compared with.
        least_history: updates before anything is compared; absolute bounds hold from the first.
        z: how many deviations are too many.
        patience: updates in a row a deciding vital, or two signs together, may be bad before it is a collapse.
        vitals: what is looked at.
    """

    window: int = 20
    least_history: int = 5
    z: float = 5.0
    patience: int = 2
    vitals: Sequence[Vital] = VITALS
    _seen: dict[str, deque[float]] = field(default_factory=dict)
    _bad: int = 0  # updates in a row
    _good: int = 0  # in all

    def examine(self, result: Mapping[str, Any]) -> list[Alarm]:
        """The alarms of one update; what was healthy joins the window."""
        alarms = []
        for vital in self.vitals:
            value = _number(result, vital.path)
            if value is None:
                continue
            past = self._seen.setdefault(vital.name, deque(maxlen=self.window))
            alarm = self._check(vital, value, past)
            if alarm is None:
                past.append(value)
            else:
                alarms.append(alarm)
        grave = any(a.decides for a in alarms) or len(alarms) > 1
        self._bad = self._bad + 1 if grave else 0
        self._good += not grave
        return alarms

    @property
    def collapsed(self) -> bool:
        """Whether patience is at its end. A policy that was never well has nothing to fall from."""
        return self._bad >= self.patience and self._good >= self.least_history

    @property
    def healthy(self) -> bool:
        """Whether the last update gave no cause for worry."""
        return self._bad == 0

    def forget_alarms(self) -> None:
        """After the run went back; the window stays, for it holds healthy updates alone."""
        self._bad = 0

    def state(self) -> dict[str, Any]:
        return {
            "seen": {name: list(values) for name, values in self._seen.items()},
            "bad": self._bad,
            "good": self._good,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._seen = {name: deque(values, maxlen=self.window) for name, values in state["seen"].items()}
        self._bad, self._good = int(state["bad"]), int(state["good"])

    def _check(self, vital: Vital, value: float, past: Iterable[float]) -> Alarm | None:
        window = np.array(list(past), np.float64)
        usual = float(np.median(window)) if len(window) else math.nan

        def alarm(z: float, *, decides: bool = vital.decides) -> Alarm:
            return Alarm(vital=vital.name, value=value, usual=usual, z=z, decides=decides)

        if not math.isfinite(value) or value < vital.floor or value > vital.ceiling:
            return alarm(math.inf, decides=vital.decides or vital.bounds_decide)
        if len(window) < self.least_history:
            return None
        least = vital.least * abs(usual) if vital.relative else vital.least
        spread = max(_NORMAL * float(np.median(np.abs(window - usual))), least, 1e-9)
        z = (value - usual) / spread
        z = {"high": z, "low": -z, "both": abs(z)}[vital.worse]
        return alarm(z) if z > self.z else None


def bounded(bounds: Mapping[str, Sequence[float | None]]) -> tuple[Vital, ...]:
    """`VITALS` with bounds of a run's own, beyond which a figure is harm.

    Args:
        bounds: floor and ceiling by vital, either of them None: `{"entropy": (0.02, 2.0)}`.

    Raises:
        ValueError: no such vital, or no floor and ceiling; all of them at once.
    """
    known = [vital.name for vital in VITALS]
    wrong = [
        f"bounds: no vital {name!r}.{did_you_mean(str(name), known)} Known: {', '.join(known)}"
        for name in bounds
        if name not in known
    ]
    own: dict[str, tuple[float, float]] = {}
    for name, pair in bounds.items():
        found = _pair(pair)
        if found is None:
            wrong.append(f"bounds: {name} is {pair!r}, not a floor and a ceiling above it, e.g. [0.02, null]")
        else:
            own[name] = found
    if wrong:
        raise ValueError("; ".join(wrong))
    return tuple(
        replace(vital, floor=own[vital.name][0], ceiling=own[vital.name][1], bounds_decide=True)
        if vital.name in own
        else vital
        for vital in VITALS
    )


def _pair(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    if any(v is not None and (isinstance(v, bool) or not isinstance(v, int | float)) for v in value):
        return None
    low, high = value
    low, high = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    return (low, high) if low < high else None


def _number(result: Mapping[str, Any], path: str) -> float | None:
    value = look_up(result, path)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
