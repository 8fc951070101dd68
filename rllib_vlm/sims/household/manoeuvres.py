"""What both experts do once they know where to go: drive, look, and take an item.

Each manoeuvre answers one turn from the robot's present state, so that slips and failed grasps are
mended by the next turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rllib_vlm.sims.household.grasp import (
    ARM_STEP_M,
    Target,
    arm_actions,
    can_stand,
    grasp_heights,
    side_bearing,
    standing_points,
)
from rllib_vlm.sims.household.place import Place
from rllib_vlm.sims.household.planner import Point, Pose, drive, turns
from rllib_vlm.sims.household.world import World

STOWED_M = 0.03  # an arm extended less than this is stowed
ALIGNED_DEG = 3.5
REACHED_M = 0.05  # reaching errors below this need no correction
BEFORE_M = 0.02  # the grasp centre stops this far before an item's side
_AVOID_M = 0.25  # after a failed reach, try again at least this far away


@dataclass(frozen=True, slots=True)
class Manoeuvre:
    """A turn's actions and the sub-goal they serve (a word of a small closed vocabulary)."""

    actions: tuple[str, ...]
    subgoal: str


class Manoeuvres:
    """Manoeuvres of one robot in one house."""

    def __init__(self, world: World, place: Place, max_actions: int) -> None:
        self.world, self.place, self.max_actions = world, place, max_actions
        self._fields: dict[str, tuple[NDArray[np.bool_], NDArray[np.float64]]] = {}
        self._masks: dict[str, tuple[Target, NDArray[np.bool_]]] = {}
        self._avoided: list[Point] = []  # where the arm was in the way of something
        self._reached_from: tuple[float, ...] | None = None  # the robot's state at its last reach

    @property
    def pose(self) -> Pose:
        robot = self.world.robot
        return Pose(robot.x, robot.y, robot.yaw)

    def _cut(self, actions: list[str], subgoal: str) -> Manoeuvre:
        return Manoeuvre(tuple(actions[: self.max_actions]), subgoal)

    def field(self, key: str, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The field of a mask, kept under a key as long as the mask stays the same."""
        kept = self._fields.get(key)
        if kept is None or not np.array_equal(kept[0], mask):
            self._fields[key] = kept = (mask, self.place.nav.field(mask))
        return kept[1]

    def go(
        self, key: str, mask: NDArray[np.bool_], subgoal: str, arrived: Callable[[Pose], bool]
    ) -> Manoeuvre | None:
        """Drives towards a mask; None where there is no way, or nothing left to do."""
        field = self.field(key, mask)
        actions, _ = drive(self.place.nav, field, self.pose, arrived, self.max_actions)
        return self._cut(actions, subgoal) if actions else None

    def stow(self) -> Manoeuvre | None:
        """Draws the arm in before driving; None where it is in."""
        robot = self.world.robot
        if robot.arm <= STOWED_M:
            return None
        return self._cut(["arm_in"] * max(1, round(robot.arm / ARM_STEP_M)), "stow")

    def face(self, x: float, y: float, subgoal: str, *, tolerance: float = 15.0) -> Manoeuvre | None:
        """Turns towards a point; None where it is ahead."""
        actions = self._rotations(self.pose.bearing(x, y), tolerance)
        return self._cut(actions, subgoal) if actions else None

    @staticmethod
    def _rotations(error: float, tolerance: float) -> list[str]:
        actions: list[str] = []
        while (action := turns(error, tolerance=tolerance)) is not None and len(actions) < 12:
            actions.append(action)
            error -= Pose(0.0, 0.0, 0.0).after(action).yaw
        return actions

    def target(self, item_id: str, position: tuple[float, float, float]) -> Target:
        item = next(i for i in self.place.house.items if i.id == item_id)
        return self.place.as_target(item, position)

    def standing(self, target: Target) -> NDArray[np.bool_]:
        """Where the target can be taken from; the first choice again as long as it has not moved."""
        kept = self._masks.get(target.id)
        if kept is None or math.dist((kept[0].x, kept[0].y), (target.x, target.y)) > 0.04:
            house = self.place.house
            others = [self.target(i.id, self.world.position(i.id)) for i in house.items if i.id != target.id]
            near = [o for o in others if math.dist((o.x, o.y), (target.x, target.y)) < 1.5]
            mask = standing_points(self.place.nav, self.place.body, target, near) & self.place.reachable
            if not mask.any():
                mask = standing_points(self.place.nav, self.place.body, target, []) & self.place.reachable
            self._masks[target.id] = kept = (target, mask)
        mask = kept[1].copy()
        for x, y in self._avoided:
            mask &= ~self.place.nav.within(x, y, 0.0, _AVOID_M)
        if not mask.any():
            self._avoided.clear()
            return kept[1]
        return mask

    def take(self, item_id: str, position: tuple[float, float, float]) -> Manoeuvre | None:
        """Goes to an item believed at `position`, takes it and stops; None where there is no way."""
        robot = self.world.robot
        if robot.held == item_id:
            return Manoeuvre(("done",), "stop")
        if robot.held is not None:
            return Manoeuvre(("dropoff",), "drop")
        if self.world.graspable()[:1] == (item_id,):
            return Manoeuvre(("pickup",), "grasp")
        target = self.target(item_id, position)
        if target.top + self.place.body.grasp_radius < self.place.body.lift_min:
            return None  # it lies too low, probably on the floor
        mask = self.standing(target)
        if not can_stand(self.place.body, self.place.nav, mask, self.pose, target):
            distance = math.dist(self.pose.point, (target.x, target.y))
            move = self.stow() or self.go(
                f"take {item_id}", mask, "go to target" if distance > 1.5 else "approach",
                lambda pose: can_stand(self.place.body, self.place.nav, mask, pose, target),
            )  # fmt: skip
            # No nearer by driving, but near enough to try.
            if move is not None or distance > self.place.body.gripper_max + target.depth:
                return move
        return self._reach(target)

    def _reach(self, target: Target) -> Manoeuvre:
        """From a standing point: align, raise, reach."""
        robot = self.world.robot
        error = side_bearing(robot, target.x, target.y)
        rotations = self._rotations(error, ALIGNED_DEG)
        if rotations:
            if abs(error) > 10.0 and (stow := self.stow()) is not None:
                return stow
            return self._cut(rotations, "align")
        blocked = self._is_blocked()
        low, high = grasp_heights(self.place.body, target)
        rise = (low + high) / 2 - robot.gripper[2]
        lift = arm_actions(rise, "arm_up", "arm_down", tolerance=max((high - low) / 2, 0.011))
        if lift and not blocked:
            return self._cut(lift, "raise" if rise > 0 else "lower")
        base = (robot.x, robot.y)
        goal = math.dist(base, (target.x, target.y)) - target.depth - BEFORE_M
        out = arm_actions(goal - math.dist(base, robot.gripper[:2]), "arm_out", "arm_in", tolerance=REACHED_M)
        if not out or blocked:
            self._avoided.append(base)
            return self.stow() or Manoeuvre(("move_back",), "stow")
        return self._cut(out, "reach")

    def _is_blocked(self) -> bool:
        """Whether the arm stands where it stood when it was last told to rise, sink or reach."""
        robot = self.world.robot
        now = (robot.x, robot.y, robot.yaw, robot.lift, robot.arm)
        before, self._reached_from = self._reached_from, now
        return (
            before is not None and max(abs(a - b) for a, b in zip(now, before, strict=True)) < ARM_STEP_M / 3
        )
