"""How much is left to do in an episode, for baselines and for rewards that pay for progress."""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rllib_vlm.sims.household.episode import ROOM_MARGIN_M, Episode
from rllib_vlm.sims.household.grasp import ARM_STEP_M, grasp_heights
from rllib_vlm.sims.household.planner import MOVE_M, TURN_DEG, Cell, NavigationMap, Pose, wrap_deg
from rllib_vlm.sims.household.tasks import GRASPING
from rllib_vlm.sims.household.world import Item, RobotState, Room

FAR_ACTIONS = 80.0  # what is farther is as far
_FACING_DEG = 20.0  # a target this near to straight ahead is looked at
_STOWED_M = 0.03


class Remaining:
    """About how many actions a planner that knows the whole house would still need, from wherever the robot is.

    Counted in fractions of SPOC's steps, so that each small turn and reach shows: metres driven in straight lines
    along the shortest way and degrees turned between them, then what the arm has to do. Things count where they
    were at first, so that one that was pushed a long way off makes the figure a guess. A few milliseconds.
    """

    def __init__(self, episode: Episode) -> None:
        self._episode = episode
        self._nav: NavigationMap = episode.place.nav
        self._targets: list[Item] = [i for i in episode.house.items if i.id in episode.task.targets]
        self._fields: dict[str, NDArray[np.float64]] = {}
        self._known: dict[str, dict[Cell, Cell]] = {}

    @cached_property
    def _near_goal(self) -> NDArray[np.bool_]:
        """Next to a goal point is near enough, as for the expert: the last steps of a way are shorter than a move."""
        near = self._episode.goal.copy()
        for axis in (0, 1):
            near |= np.roll(near, 1, axis) | np.roll(near, -1, axis)
        return near

    def __call__(self, robot: RobotState, *, held: bool, marked: Collection[str]) -> float:
        """Actions to success, `done` included, at most `FAR_ACTIONS`.

        Args:
            robot: where it is now.
            held: whether what it holds fits the task.
            marked: rooms (RoomVisit) that need no visit any more.
        """
        task, pose = self._episode.task, Pose(robot.x, robot.y, robot.yaw)
        if held:
            return 1.0
        if task.name == "RoomVisit":
            return min(self._rooms(pose, marked) + 1.0, FAR_ACTIONS)
        driving, arrived = self._drive("goal", self._episode.goal, self._near_goal, pose)
        if not math.isfinite(driving):
            return FAR_ACTIONS
        stow = robot.arm / ARM_STEP_M if driving > 0.0 and robot.arm > _STOWED_M else 0.0
        drop = float(robot.held is not None)
        return min(
            drop + stow + driving + self._at_goal(robot, arrived, stowed=stow > 0.0) + 1.0, FAR_ACTIONS
        )

    def _rooms(self, pose: Pose, marked: Collection[str]) -> float:
        """Driving into each room and marking it, the nearest next."""
        left, total = [r for r in self._episode.house.rooms if r.id not in marked], 0.0
        while left:
            ways = {r.id: self._drive(r.id, self._inside(r), self._inside(r), pose) for r in left}
            room = min(left, key=lambda r: ways[r.id][0])
            driving, pose = ways[room.id]
            total += driving + 1.0
            left.remove(room)
        return total

    def _inside(self, room: Room) -> NDArray[np.bool_]:
        return self._nav.mask(room, ROOM_MARGIN_M) & self._episode.place.reachable

    def _drive(
        self, key: str, goal: NDArray[np.bool_], enough: NDArray[np.bool_], pose: Pose
    ) -> tuple[float, Pose]:
        """Moves and turns from a pose to where it is `enough`, and the pose there."""
        nav = self._nav
        if enough[nav.cell(pose.x, pose.y)]:
            return 0.0, pose
        if key not in self._fields:
            self._fields[key] = nav.field(goal)
        known = self._known.setdefault(key, {})
        way = np.array(nav.descend(self._fields[key], pose.x, pose.y, known)).reshape(-1, 2)
        if not len(way):
            return math.inf, pose
        reached = [bool(enough[nav.cell(x, y)]) for x, y in way.tolist()]
        way = way[: reached.index(True) + 1] if True in reached else way
        actions, at = 0.0, 0
        while at < len(way):
            # As far straight ahead as the robot fits.
            free = np.flatnonzero(nav.lines_free(pose.point, way[at:]))
            at += int(free[-1]) if len(free) else 0
            x, y = way[at].tolist()
            turn, length = pose.bearing(x, y), math.dist(pose.point, (x, y))
            at += 1
            if length < MOVE_M / 2:
                continue
            actions += abs(turn) / TURN_DEG + length / MOVE_M
            pose = Pose(x, y, wrap_deg(pose.yaw + turn))
        return actions, pose

    def _at_goal(self, robot: RobotState, pose: Pose, *, stowed: bool) -> float:
        """What is left but `done` once the robot stands there: turning to the target, lifting, reaching, grasping."""
        if not self._targets:
            return 0.0
        item = min(self._targets, key=lambda i: math.dist(pose.point, (i.x, i.y)))
        bearing = pose.bearing(item.x, item.y)
        if self._episode.task.name not in GRASPING:
            return max(0.0, abs(bearing) - _FACING_DEG) / TURN_DEG
        place = self._episode.place
        low, high = grasp_heights(place.body, place.as_target(item))
        height = robot.gripper[2]
        lift = max(low - height, height - high, 0.0)
        extended = math.dist((robot.x, robot.y), robot.gripper[:2]) - (robot.arm if stowed else 0.0)
        reach = abs(math.dist(pose.point, (item.x, item.y)) - place.as_target(item).depth - extended)
        return abs(wrap_deg(bearing + 90.0)) / TURN_DEG + (lift + reach) / ARM_STEP_M + 1.0
