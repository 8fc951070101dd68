"""Rewards of the household tasks: SPOC's (shaped or sparse) and VAGEN's.

Sources: allenai/spoc-robot-training, tasks/abstract_task.py, object_nav_task.py, fetch_task.py and
room_visit_task.py (weights of its online training configurations); the 0.35 m rule is that of the
VAGEN SPOC environment. SPOC's +5 for a pick-up never fires there because of a flag that is never
set; here it does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from rllib_vlm.errors import did_you_mean

RewardMode = Literal["spoc", "spoc_sparse", "vagen"]
REWARD_MODES: tuple[RewardMode, ...] = get_args(RewardMode)


_FAR_M = 20.0  # metres told of at most


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardWeights:
    """Every weight of every mode. The first five count in all modes, the others only in `spoc`.

    `planned` is no part of SPOC's reward: a potential, so that it pays nothing for going in circles and changes no
    optimal policy where nothing is discounted (Ng, Harada and Russell, "Policy invariance under reward
    transformations", ICML 1999). The potential is the shortest-path planner's plan, of which a policy sees nothing.
    """

    success: float = 10.0
    step: float = 0.0  # each action
    failed_action: float = 0.0  # each action without its effect
    failed_stop: float = 0.0  # `done` without success
    horizon: float = 0.0  # running out of steps
    progress: float = 1.0  # per metre closer to the goal than ever before (geodesic)
    graspable: float = 5.0  # the target is within the gripper's sphere for the first time
    picked_up: float = 5.0  # the target is held for the first time
    arm_progress: float = 5.0  # per metre the gripper is closer to the target than ever before
    arm_range_m: float = 1.0  # the gripper's distance counts only below this
    new_cell: float = 0.005  # a floor cell (0.5 m) not visited before
    new_room: float = 2.0
    sub_done: float = 2.0  # a new room, marked
    wrong_sub_done: float = -0.2
    planned: float = (
        0.0  # per action less that the planner would need, at each turn's end; as much off per action more
    )
    near_m: float = 0.35  # `vagen`: so near to the target counts as success


def reward_weights(given: RewardWeights | Mapping[str, Any] | None) -> tuple[RewardWeights, list[str]]:
    """The weights a user asked for, and what is wrong with them (empty: nothing)."""
    if given is None or isinstance(given, RewardWeights):
        return given or RewardWeights(), []
    known = [f.name for f in fields(RewardWeights)]
    if not isinstance(given, Mapping):
        return RewardWeights(), [f"reward_weights is {given!r}, not a mapping of {', '.join(known)}"]
    problems = [
        f"reward_weights has no {key!r}.{did_you_mean(str(key), known)} Known: {', '.join(known)}"
        for key in given
        if key not in known
    ]
    problems += [
        f"reward_weights[{key!r}] is {value!r}, not a finite number"
        for key, value in given.items()
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)
    ]
    return (RewardWeights() if problems else RewardWeights(**given)), problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What a reward looks at, after a step. Distances in metres; None where the task has no such thing."""

    distance: float | None = None  # geodesic, from the base to where the task can be finished
    gripper_distance: float | None = None  # from the grasp centre to the target
    graspable: bool = False
    held: bool = False
    cell: tuple[int, int] = (0, 0)
    room: str | None = None


class Shaping:
    """SPOC's shaping terms over one episode: each closest distance and each first time pays once."""

    def __init__(self, weights: RewardWeights, *, start: Situation, visits_rooms: bool) -> None:
        self._w = weights
        self._visits_rooms = visits_rooms
        self._closest = start.distance
        self._closest_gripper = self._gripper(start)
        self._was_graspable = start.graspable
        self._was_held = start.held
        self._cells = {start.cell}
        self._rooms = {start.room}

    def _gripper(self, now: Situation) -> float | None:
        return None if now.gripper_distance is None else min(now.gripper_distance, self._w.arm_range_m)

    def state(self) -> dict[str, float]:
        """What has been paid for already, so what there is still to earn: metres, and 1 or 0."""
        return {
            "closest_m": min(self._closest or 0.0, _FAR_M),
            "closest_gripper_m": self._closest_gripper or 0.0,
            "was_graspable": float(self._was_graspable),
            "was_held": float(self._was_held),
        }

    def __call__(self, now: Situation) -> float:
        """The shaping reward of the step that led to `now`."""
        w, reward = self._w, 0.0
        if now.distance is not None and self._closest is not None and now.distance < self._closest:
            reward += w.progress * (self._closest - now.distance)
            self._closest = now.distance
        gripper = self._gripper(now)
        if gripper is not None and self._closest_gripper is not None and gripper < self._closest_gripper:
            reward += w.arm_progress * (self._closest_gripper - gripper)
            self._closest_gripper = gripper
        if now.graspable and not self._was_graspable:
            self._was_graspable = True
            reward += w.graspable
        if now.held and not self._was_held:
            self._was_held = True
            reward += w.picked_up
        if self._visits_rooms:
            reward += w.new_cell * (now.cell not in self._cells) + w.new_room * (now.room not in self._rooms)
            self._cells.add(now.cell)
            self._rooms.add(now.room)
        return reward
