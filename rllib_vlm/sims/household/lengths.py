"""How long the shortest-path expert takes: the reference of SEL and SPL.

Driving is counted by walking the planner's own way without physics; the arm's actions by the same
rule the expert uses.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rllib_vlm.sims.household.episode import ROOM_MARGIN_M, Episode
from rllib_vlm.sims.household.grasp import arm_actions, grasp_heights
from rllib_vlm.sims.household.planner import Pose, drive, wrap_deg
from rllib_vlm.sims.household.tasks import GRASPING
from rllib_vlm.sims.household.world import RobotState, Room

_MOST = 400


def expert_length(episode: Episode, robot: RobotState) -> int:
    """Actions from the start to success, `done` included."""
    if episode.task.name == "RoomVisit":
        length, pose = 0, episode.start
        for room in tour(episode):
            driven, pose = _drive_to(episode, room, pose)
            length += driven + 1
        return length + 1
    nav, goal = episode.place.nav, episode.goal

    def arrived(pose: Pose) -> bool:
        # Next to a goal point is near enough, as for the expert: the way's last steps are shorter than a move.
        i, j = nav.cell(pose.x, pose.y)
        return bool(goal[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].any())

    actions, pose = drive(nav, nav.field(goal), episode.start, arrived, _MOST)
    return len(actions) + _at_the_goal(episode, robot, pose) + 1


def _at_the_goal(episode: Episode, robot: RobotState, pose: Pose) -> int:
    """Actions beside driving and `done`: turning to the target, lifting, reaching, grasping."""
    item = next((i for i in episode.house.items if i.id in episode.task.targets), None)
    if item is None:
        return 0
    bearing = pose.bearing(item.x, item.y)
    if episode.task.name not in GRASPING:
        return max(0, round((abs(bearing) - 20.0) / 30.0))
    turn = abs(wrap_deg(bearing + 90.0))
    rest = turn % 30.0
    rotations = int(turn // 30.0) + round(min(rest, 30.0 - rest) / 6.0) + (rest > 15.0)
    base = math.dist((robot.x, robot.y), robot.gripper[:2])
    out = math.dist(pose.point, (item.x, item.y)) - base
    low, high = grasp_heights(episode.place.body, episode.place.as_target(item))
    arm = arm_actions((low + high) / 2 - robot.gripper[2], "arm_up", "arm_down", tolerance=(high - low) / 2)
    arm += arm_actions(out, "arm_out", "arm_in", tolerance=0.05)
    return rotations + len(arm) + 1


def tour(episode: Episode) -> list[Room]:
    """All rooms, each time the nearest one next, from the start."""
    left, pose, order = list(episode.house.rooms), episode.start, []
    while left:
        room = min(left, key=lambda r: _room_distance(episode, r, pose))
        order.append(room)
        left.remove(room)
        _, pose = _drive_to(episode, room, pose)
    return order


def tour_length(episode: Episode) -> float:
    """Metres of that tour."""
    total, pose = 0.0, episode.start
    for room in tour(episode):
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
