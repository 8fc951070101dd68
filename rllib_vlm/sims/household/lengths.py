"""How long the shortest-path expert takes: the reference of SEL and SPL, and what a baseline goes by.

Driving is counted by walking the planner's own way without physics; the arm's actions by the same
rule the expert uses.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rllib_vlm.sims.household.episode import ROOM_MARGIN_M, Episode
from rllib_vlm.sims.household.grasp import ARM_STEP_M, arm_actions, grasp_heights
from rllib_vlm.sims.household.manoeuvres import STOWED_M
from rllib_vlm.sims.household.planner import Pose, drive, wrap_deg
from rllib_vlm.sims.household.tasks import GRASPING
from rllib_vlm.sims.household.world import RobotState, Room

_MOST = 400


class Remaining:
    """How many actions of the shortest-path expert are left in an episode, from wherever its robot is.

    Items count where they were at first, so that an item pushed a long way off makes the figure a guess.
    """

    def __init__(self, episode: Episode) -> None:
        self._episode = episode
        self._targets = [i for i in episode.house.items if i.id in episode.task.targets]

    @cached_property
    def _field(self) -> NDArray[np.float64]:
        return self._episode.place.nav.field(self._episode.goal)

    def __call__(self, robot: RobotState, *, held: bool, marked: Collection[str]) -> int:
        """Actions to success, `done` included, at most about 400.

        Args:
            robot: where it is now.
            held: whether what it holds fits the task.
            marked: rooms (RoomVisit) that need no visit any more.
        """
        episode = self._episode
        pose = Pose(robot.x, robot.y, robot.yaw)
        if episode.task.name == "RoomVisit":
            length = 0
            for room in tour(episode, pose, marked):
                driven, pose = _drive_to(episode, room, pose)
                length += driven + 1
            return length + 1
        if held:
            return 1
        nav, goal = episode.place.nav, episode.goal

        def arrived(pose: Pose) -> bool:
            # Next to a goal point is near enough, as for the expert: the way's last steps are shorter than a move.
            i, j = nav.cell(pose.x, pose.y)
            return bool(goal[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].any())

        actions, pose = drive(nav, self._field, pose, arrived, _MOST)
        stow = max(1, round(robot.arm / ARM_STEP_M)) if actions and robot.arm > STOWED_M else 0
        drop = int(robot.held is not None)
        return drop + stow + len(actions) + self._at_the_goal(robot, pose, stowed=stow > 0) + 1

    def _at_the_goal(self, robot: RobotState, pose: Pose, *, stowed: bool) -> int:
        """Actions beside driving and `done`: turning to the target, lifting, reaching, grasping."""
        if not self._targets:
            return 0
        item = min(self._targets, key=lambda i: math.dist(pose.point, (i.x, i.y)))
        bearing = pose.bearing(item.x, item.y)
        if self._episode.task.name not in GRASPING:
            return max(0, round((abs(bearing) - 20.0) / 30.0))
        turn = abs(wrap_deg(bearing + 90.0))
        rest = turn % 30.0
        rotations = int(turn // 30.0) + round(min(rest, 30.0 - rest) / 6.0) + (rest > 15.0)
        base = math.dist((robot.x, robot.y), robot.gripper[:2]) - (robot.arm if stowed else 0.0)
        out = math.dist(pose.point, (item.x, item.y)) - base
        place = self._episode.place
        low, high = grasp_heights(place.body, place.as_target(item))
        arm = arm_actions(
            (low + high) / 2 - robot.gripper[2], "arm_up", "arm_down", tolerance=(high - low) / 2
        )
        arm += arm_actions(out, "arm_out", "arm_in", tolerance=0.05)
        return rotations + len(arm) + 1


def tour(episode: Episode, pose: Pose, marked: Collection[str] = ()) -> list[Room]:
    """All rooms but the marked ones, each time the nearest one next, from `pose`."""
    left, order = [room for room in episode.house.rooms if room.id not in marked], []
    while left:
        room = min(left, key=lambda r: _room_distance(episode, r, pose))
        order.append(room)
        left.remove(room)
        _, pose = _drive_to(episode, room, pose)
    return order


def tour_length(episode: Episode) -> float:
    """Metres of that tour."""
    total, pose = 0.0, episode.start
    for room in tour(episode, pose):
        total += _room_distance(episode, room, pose)
        _, pose = _drive_to(episode, room, pose)
    return total


def _field_mask(episode: Episode, room: Room) -> NDArray[np.bool_]:
    return episode.place.nav.mask(room, ROOM_MARGIN_M) & episode.place.reachable


def _room_distance(episode: Episode, room: Room, pose: Pose) -> float:
    nav = episode.place.nav
    return nav.value(nav.field(_field_mask(episode, room), comfortable=False), pose.x, pose.y)


def _drive_to(episode: Episode, room: Room, pose: Pose) -> tuple[int, Pose]:
    nav = episode.place.nav
    field = nav.field(_field_mask(episode, room))

    def inside(at: Pose) -> bool:
        return room.contains(at.x, at.y)

    actions, pose = drive(nav, field, pose, inside, _MOST)
    return len(actions), pose
