"""The collapse guard: sees a policy go to pieces, takes it back to where it was well, and goes on more carefully."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.utils.annotations import override

from rllib_vlm.errors import RLlibVLMError
from rllib_vlm.files import append_json_line, or_go_on
from rllib_vlm.guard.ring import Ring
from rllib_vlm.guard.vitals import VITALS, Monitor, Sign, Vital, bounded

logger = logging.getLogger(__name__)

EVENTS_FILE = "events.jsonl"
STATES_FOLDER = "good_states"
GUARD_STATE = "guard"  # in the run's checkpointed notes
# Event, as `events.jsonl` names it -> the figure `guard/*` of the results that counts it over the whole run.
EVENTS = {
    "sign": "signs_total",
    "alarm": "alarms_total",
    "rollback": "rollbacks",
    "state_not_saved": "states_not_saved",
    "stopped": "stopped",
}
_GAP = 0.05  # nats; engine and learner that hold the same weights differ by rounding alone


class CollapseGuard(RLlibCallback):
    """Watches every update of reinforcement learning and rolls the run back when it collapses.

    After each update the vital signs of `guard.vitals` are compared with those of the last healthy updates. Every
    `every`th healthy update the whole state (weights, value head, optimizers, counters, task cursor, KL coefficient) is
    written into `good_states/` of the run's folder, and trusted once `proof` healthy updates have followed it. A
    collapse, which is `patience` updates in a row with harm or with two signs of it, small falls of success that add up
    to `drift`, or `lasting` updates in a row with a critic worse than none while success falls, takes the run back to
    the newest trusted state, with the learning rate and the clip range lowered, other random numbers and other tasks;
    the engine's weights are loaded anew and checked by what it and the learner say of the same tokens. After
    `max_rollbacks` of them, or where there is nothing to go back to, the run stops with a report: the results of that
    update still come out, the next one raises. Time and counters of the whole run go on.

    Nothing that was sampled before a rollback is learnt from after it: batches under way and episodes that would go on
    by newer weights are given up.

    Each vital that is bad is an `alarm` where its update counts as bad, and a `sign` where it stands alone and decides
    nothing. Everything seen and done is a line of `events.jsonl` and is counted by a figure `guard/*` of the results,
    see `EVENTS`.

    Args:
        every: healthy updates from one saved state to the next.
        keep: trusted states that are kept.
        proof: healthy updates that make a state trusted.
        window: healthy updates that are compared with.
        least_history: updates before anything is compared.
        z: robust deviations that are a sign.
        patience: bad updates in a row that are a collapse.
        drift: robust deviations of success, less half of one an update, that are a collapse when they add up to it.
        lasting: updates in a row with a critic worse than none that are a collapse where success falls meanwhile.
        lr_factor: of the learning rates, at each rollback.
        clip_factor: of the clip range, at each rollback.
        max_rollbacks: of a run.
        bounds: floor and ceiling of any vital, `{entropy: [0.02, 2.0]}`, beyond which it is harm whatever it was
            before; null for one of them is none.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        *,
        every: int = 5,
        keep: int = 2,
        proof: int = 2,
        window: int = 20,
        least_history: int = 5,
        z: float = 5.0,
        patience: int = 2,
        drift: float = 5.0,
        lasting: int = 4,
        lr_factor: float = 0.5,
        clip_factor: float = 0.8,
        max_rollbacks: int = 3,
        bounds: Mapping[str, Sequence[float | None]] | None = None,
    ) -> None:
        super().__init__()
        least = {
            "every": every,
            "keep": keep,
            "proof": proof,
            "window": window,
            "patience": patience,
            "lasting": lasting,
        }
        wrong = [f"{name} is {value!r}, not a whole number of 1 or more"
                 for name, value in {**least, "least_history": least_history}.items()
                 if isinstance(value, bool) or not isinstance(value, int) or value < 1]  # fmt: skip
        for name, value in (("lr_factor", lr_factor), ("clip_factor", clip_factor)):
            if not 0.0 < value <= 1.0:
                wrong.append(f"{name} is {value!r}, not above 0 and at most 1")
        for name, value in (("z", z), ("drift", drift)):
            if not value > 0.0:
                wrong.append(f"{name} is {value!r}, not above 0")
        if max_rollbacks < 0:
            wrong.append(f"max_rollbacks is {max_rollbacks!r}, not 0 or more")
        vitals: Sequence[Vital] = VITALS
        try:
            vitals = bounded(bounds or {})
        except ValueError as error:
            wrong.append(str(error))
        if wrong:
            raise ValueError("; ".join(wrong))
        self._every, self._keep, self._proof = every, keep, proof
        self._lr_factor, self._clip_factor, self._max = lr_factor, clip_factor, max_rollbacks
        self._monitor = Monitor(
            window=window,
            least_history=least_history,
            z=z,
            patience=patience,
            drift=drift,
            lasting=lasting,
            vitals=vitals,
        )
        self._ring: Ring | None = None
        self._last: int | None = None  # update of the state the run last went back to
        self._counts = dict.fromkeys(EVENTS, 0)  # over the whole run

    @override(RLlibCallback)
    def on_checkpoint_loaded(self, *, algorithm: Any, metrics_logger: Any = None, **kwargs: Any) -> None:
        notes = algorithm.run_state.notes.get(GUARD_STATE)
        if notes:
            self._monitor.restore(notes)
            self._last = notes.get("last")
            told = notes.get("events", {})  # of a resumed run; a rollback takes no event back
            self._counts = {event: max(n, told.get(event, 0)) for event, n in self._counts.items()}

    @override(RLlibCallback)
    def on_train_result(
        self, *, algorithm: Any, metrics_logger: Any = None, result: dict[str, Any], **kwargs: Any
    ) -> None:
        state = algorithm.run_state
        updated = "policy_loss" in _learned(result)
        if updated:
            self._update(algorithm, result)
        state.notes[GUARD_STATE] = {
            **self._monitor.state(), "last": self._last, "events": dict(self._counts)
        }  # fmt: skip
        result["guard"] = {
            **result.get("guard", {}),
            **{figure: self._counts[event] for event, figure in EVENTS.items()},
            "lr_scale": state.lr_scale,
            "clip_scale": state.clip_scale,
        }

    def _update(self, algorithm: Any, result: dict[str, Any]) -> None:
        ring = self._states(algorithm)
        signs = self._monitor.examine(result)
        alarmed = self._monitor.alarmed
        result["guard"] = {"signs": len(signs), "alarms": len(signs) if alarmed else 0}
        update = algorithm.run_state.updates
        for sign in signs:
            self._tell(algorithm, "alarm" if alarmed else "sign", update=update, **_figures(sign))
        if self._monitor.collapsed:
            self._roll_back(algorithm, signs, result)
            return
        if not self._monitor.healthy:
            ring.suspect()
            return
        with or_go_on(f"a note of {STATES_FOLDER}"):
            ring.healthy()
        if update % self._every == 0:
            try:
                ring.save(update, lambda folder: algorithm.save_to_path(str(folder)))
            except OSError as error:
                self._tell(algorithm, "state_not_saved", update=update, reason=str(error))

    def _roll_back(self, algorithm: Any, signs: list[Sign], result: dict[str, Any]) -> None:
        state, ring = algorithm.run_state, self._states(algorithm)
        update, why = state.updates, [sign.words() for sign in signs]
        result["done"] = False  # after a run's last update too: there is one to come, or an error to raise
        ring.suspect()
        if self._last is not None:
            ring.give_up(self._last)
        found = ring.best()
        if found is None or state.rollbacks >= self._max:
            reason = (
                "no healthy state to go back to" if found is None else f"{state.rollbacks} rollbacks made"
            )
            self._tell(algorithm, "stopped", update=update, why=why, reason=reason)
            algorithm.ending = RLlibVLMError(
                f"the policy collapsed at update {update} ({'; '.join(why)}) and the run stops: {reason}. "
                f"What happened stands in {EVENTS_FILE} of the run's folder; `rllib diagnose` says what to change."
            )
            return
        to, folder = found
        algorithm.roll_back(folder, lr_factor=self._lr_factor, clip_factor=self._clip_factor)
        self._last = to
        self._monitor.forget_signs()
        gap = algorithm.probe_sync()
        self._tell(
            algorithm, "rollback", update=update, to=to, why=why, lr_scale=algorithm.run_state.lr_scale,
            clip_scale=algorithm.run_state.clip_scale, probe_gap=gap,
        )  # fmt: skip
        logger.warning(
            "Update %d: %s. Back to update %d, with %.3g of the learning rate.",
            update, "; ".join(why), to, algorithm.run_state.lr_scale,
        )  # fmt: skip
        if not gap <= _GAP:
            reason = f"after going back to update {to}, engine and learner differ by {gap:.3g} nats on the same tokens"
            self._tell(algorithm, "stopped", update=to, why=why, reason=reason)
            algorithm.ending = RLlibVLMError(
                f"{reason}: the engine does not take its weights. The run stops before it learns from them."
            )

    def _states(self, algorithm: Any) -> Ring:
        if self._ring is None:
            root = algorithm.lasting_folder / STATES_FOLDER
            for torn in root.glob(".*.tmp"):
                shutil.rmtree(torn, ignore_errors=True)
            self._ring = Ring(root=root, keep=self._keep, proof=self._proof)
            self._ring.forget_after(algorithm.run_state.updates)
        return self._ring

    def _tell(self, algorithm: Any, event: str, **fields: Any) -> None:
        self._counts[event] += 1
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"time": now, "iteration": algorithm.iteration, "event": event, **fields}
        with or_go_on(f"a line of {EVENTS_FILE}"):
            append_json_line(algorithm.lasting_folder / EVENTS_FILE, line)


def _learned(result: Mapping[str, Any]) -> Mapping[str, Any]:
    found = result.get("learners", {}).get("default_policy", {})
    return found if isinstance(found, Mapping) else {}


def _figures(sign: Sign) -> dict[str, Any]:
    usual = None if sign.usual != sign.usual else sign.usual  # JSON has no NaN
    z = None if sign.z == float("inf") else round(sign.z, 2)
    return {"vital": sign.vital, "value": sign.value, "usual": usual, "z": z, "decides": sign.decides}
