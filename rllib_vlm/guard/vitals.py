"""Vital signs of a run: whether an update's figures are those of a policy that goes to pieces.

Each figure is compared with its own last healthy updates by a z-score that outliers cannot widen::

    z = (x - median) / max(1.4826 * median(|w - median|), least)        over the window w

`least` is the spread below which a figure is taken to stand still, so that a run which hardly varies does not
give a sign at its first small move. 1.4826 makes the median deviation that of a normal distribution's standard
deviation (Rousseeuw and Croux 1993, "Alternatives to the Median Absolute Deviation").

What falls a little each update never is far from its window. Its deviations are added up instead, less half of one an
update, and the sum is compared with a bound: the cumulative sum chart of Page (1954, "Continuous Inspection Schemes"),
whose bound of 5 and reference of 0.5 take some 900 updates of normal noise to a false alarm (Montgomery,
"Introduction to Statistical Quality Control")::

    s = max(0, s + z - 0.5)

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
_REFERENCE = 0.5  # deviations an update that are no drift
_SUSPECT = 1.0  # sum of a drift from which no state is trusted: it begins before it is seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Vital:
    """One figure and how it goes bad.

    A vital that `decides` is harm itself: the run goes back for it. The others are signs, which are told and
    on which nothing is done until they come together with another; a sign that `lasts` may also come together with a
    drift. (A critic explains nothing of returns that are all alike: at full success that is no harm.)
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
    drifts: bool = False  # falls that are small each update count as well
    lasts: bool = False  # harm where it stays bad while one that drifts is on its way down


VITALS: tuple[Vital, ...] = (
    Vital(name="success", path="env_runners/success_rate", worse="low", least=0.08, decides=True, drifts=True),
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
    Vital(
        name="explained_variance", path=f"{_LEARNER}explained_variance", worse="low", least=0.15, floor=-2.0,
        lasts=True,
    ),
    Vital(name="sampler_gap", path=f"{_LEARNER}sampler_gap", worse="high", least=0.01, decides=True, ceiling=0.5),
    Vital(name="kl", path=f"{_LEARNER}approx_kl", worse="high", least=0.01, ceiling=1.0),
    Vital(name="grad_norm", path=f"{_LEARNER}grad_norm", worse="high", least=0.5, relative=True),
    Vital(name="skipped_steps", path=f"{_LEARNER}num_skipped_steps", worse="high", least=0.5),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """A vital that is bad in one update."""

    vital: str
    value: float
    usual: float  # median of the window; NaN before there is one
    # In the direction that is worse; infinite where an absolute bound is crossed, the sum where small ones add up.
    z: float
    decides: bool
    at_once: bool = False  # whatever patience says: it has been bad for long enough

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
        drift: what the deviations of a vital that `drifts` may add up to.
        lasting: updates in a row a vital that `lasts` may be bad while another drifts.
        vitals: what is looked at.
    """

    window: int = 20
    least_history: int = 5
    z: float = 5.0
    patience: int = 2
    drift: float = 5.0
    lasting: int = 4
    vitals: Sequence[Vital] = VITALS
    _seen: dict[str, deque[float]] = field(default_factory=dict)
    _sums: dict[str, float] = field(default_factory=dict)  # of drifts
    _rows: dict[str, int] = field(default_factory=dict)  # bad updates in a row of vitals that last
    _bad: int = 0  # updates in a row
    _at_once: bool = False
    _good: int = 0  # in all

    def examine(self, result: Mapping[str, Any]) -> list[Sign]:
        """What is bad in one update; what was healthy joins the window."""
        signs = []
        for vital in self.vitals:
            value = _number(result, vital.path)
            if value is None:
                continue
            past = self._seen.setdefault(vital.name, deque(maxlen=self.window))
            sign = self._check(vital, value, past)
            if sign is None:
                past.append(value)
            else:
                signs.append(sign)
        if self._ailing:
            signs = [self._in_the_long_run(sign) for sign in signs]
        self._at_once = any(sign.at_once for sign in signs)
        grave = any(sign.decides for sign in signs) or len(signs) > 1
        self._bad = self._bad + 1 if grave else 0
        self._good += not grave
        return signs

    @property
    def alarmed(self) -> bool:
        """Whether the last update counts as bad: one of its signs decides, or two came together."""
        return self._bad > 0

    @property
    def collapsed(self) -> bool:
        """Whether patience is at its end. A policy that was never well has nothing to fall from."""
        return (self._bad >= self.patience or self._at_once) and self._good >= self.least_history

    @property
    def healthy(self) -> bool:
        """Whether the last update gave no cause for worry, so that the state after it may be gone back to."""
        return not (self._bad or self._ailing or any(total > _SUSPECT for total in self._sums.values()))

    def forget_signs(self) -> None:
        """After the run went back; the window stays, for it holds healthy updates alone."""
        self._bad, self._at_once = 0, False
        self._sums.clear()
        self._rows.clear()

    def state(self) -> dict[str, Any]:
        return {
            "seen": {name: list(values) for name, values in self._seen.items()},
            "sums": dict(self._sums),
            "rows": dict(self._rows),
            "bad": self._bad,
            "good": self._good,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._seen = {name: deque(values, maxlen=self.window) for name, values in state["seen"].items()}
        self._sums = dict(state.get("sums", {}))  # not there in what earlier versions wrote
        self._rows = dict(state.get("rows", {}))
        self._bad, self._good = int(state["bad"]), int(state["good"])

    def _check(self, vital: Vital, value: float, past: Iterable[float]) -> Sign | None:
        """The sign that one figure is, if it is one; keeps count of what adds up over updates."""
        usual, z = self._deviation(vital, value, past)
        bad = z > self.z
        sign = Sign(
            vital=vital.name, value=value, usual=usual, z=z,
            decides=vital.decides or (vital.bounds_decide and math.isinf(z)),
        )  # fmt: skip
        if vital.drifts:
            self._sums[vital.name] = max(0.0, self._sums.get(vital.name, 0.0) + min(z, self.z) - _REFERENCE)
            if self._sums[vital.name] > self.drift and not bad:
                return replace(sign, z=self._sums[vital.name], at_once=True)
        if vital.lasts:
            self._rows[vital.name] = self._rows.get(vital.name, 0) + 1 if bad else 0
        return sign if bad else None

    @property
    def _ailing(self) -> bool:
        """Whether there is a sign of what lasts while something is on its way down."""
        return any(self._rows.values()) and any(total > 0.0 for total in self._sums.values())

    def _in_the_long_run(self, sign: Sign) -> Sign:
        long = self._rows.get(sign.vital, 0) >= self.lasting
        return replace(sign, decides=True, at_once=True) if long else sign

    def _deviation(self, vital: Vital, value: float, past: Iterable[float]) -> tuple[float, float]:
        """The window's median, and how far on the bad side of it a figure is, in robust deviations."""
        window = np.array(list(past), np.float64)
        usual = float(np.median(window)) if len(window) else math.nan
        if not math.isfinite(value) or value < vital.floor or value > vital.ceiling:
            return usual, math.inf
        if len(window) < self.least_history:
            return usual, 0.0
        least = vital.least * abs(usual) if vital.relative else vital.least
        spread = max(_NORMAL * float(np.median(np.abs(window - usual))), least, 1e-9)
        z = (value - usual) / spread
        return usual, {"high": z, "low": -z, "both": abs(z)}[vital.worse]


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
