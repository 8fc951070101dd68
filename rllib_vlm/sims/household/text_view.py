"""Observations in words: short lines from a small, regular vocabulary."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rllib_vlm.sims.household.scene import Scene, Sighting
from rllib_vlm.sims.household.tasks import Task, named_receptacles
from rllib_vlm.sims.household.world import RobotState

MAX_LINES = 12
NEAR_M = 1.1  # things nearer than this are told with their place relative to the gripper
FREE_M = 2.0  # free floor is told of so far
_RANGED_DEG = (120.0, 60.0, 30.0, 0.0, -30.0, -60.0, -120.0, 180.0)


def proprioception(robot: RobotState, held: str, failed: Sequence[str]) -> str:
    """What the robot feels: `lift 70 arm 20 holding nothing ok` (centimetres).

    Args:
        robot: the robot's state.
        held: the held item in words, "nothing" if there is none.
        failed: the last turn's actions that did not have their effect.
    """
    outcome = "failed " + " ".join(dict.fromkeys(failed)) if failed else "ok"
    return f"lift {round(100 * robot.lift)} arm {round(100 * robot.arm)} holding {held} {outcome}"


def describe(scene: Scene, held: str, failed: Sequence[str], *, max_lines: int = MAX_LINES) -> str:
    """Everything visible in words, nearest first, then the proprioception line.

    One part a thing, as few tokens as it takes: `red mug right 92 6 up 12 out 24`. The bearing from
    the heading is in degrees (exact to 2 within `NEAR_M`, else to 6), the distance in decimetres;
    `up` and `out` (items within `NEAR_M` on the arm's side) say how far the gripper has to go, in
    centimetres. Furniture that stands in another room says so: `oak desk in office left 12 40`.
    """
    room = scene.room
    lines = [f"in the {room.type}" if room is not None else "in a doorway"]
    for thing in listed(scene, max_lines=max_lines):
        elsewhere = thing.kind == "furniture" and thing.room != (room.type if room is not None else None)
        where = f" in {thing.room}" if elsewhere else ""
        lines.append(f"{thing.words}{where} {exact_place(thing, scene.world.robot)}")
    lines.append(proprioception(scene.world.robot, held, failed))
    return "; ".join(lines)  # not line by line: after a blank, a name is the same token everywhere


def describe_relevant(scene: Scene, task: Task, held: str, failed: Sequence[str]) -> str:
    """What matters to the task, by `rounded_place`: `yellow remote not seen; desk left 12 40; door to ...`.

    The nearest target and the nearest piece that the instruction names, under the instruction's names, the
    visible doors, nearest first, then `ways` and the proprioception line. A target that the gripper would close on
    is `at gripper`.
    """
    room, robot = scene.room, scene.world.robot
    parts = [f"in the {room.type}" if room is not None else "in a doorway"]
    for words, ids in (
        (task.thing, task.targets),
        (task.receptacle, named_receptacles(scene.house, task)),
    ):
        if words and robot.held not in ids:
            seen = min(scene.things(sorted(ids)), key=lambda s: (s.distance, s.id), default=None)
            if seen is None:
                parts.append(f"{words} not seen")
            else:
                at_gripper = seen.id in scene.world.graspable()
                parts.append(f"{words} {'at gripper' if at_gripper else rounded_place(seen, robot)}")
    doors = sorted(scene.doors(), key=lambda s: (s.distance, s.id))
    parts += [f"{door.words} {rounded_place(door, robot)}" for door in doors]
    return "; ".join([*parts, ways(scene), proprioception(robot, held, failed)])


def ways(scene: Scene) -> str:
    """What a range finder tells of furniture and walls in the way: `free 2 8 10 20 20 4 0 15`.

    How far the robot could go straight, in decimetres, from left to right: at 120, 60, 30, 0, -30, -60 and -120 degrees
    from its heading, then behind it. Exact to 1 up to 1 m and to 5 up to `FREE_M`, which also stands for more.
    """
    dm = [math.floor(10 * d + 1e-6) for d in scene.nav.ranges(scene.pose, _RANGED_DEG, FREE_M)]
    return f"free {' '.join(str(d if d <= 10 else 5 * (d // 5)) for d in dm)}"


def listed(scene: Scene, *, max_lines: int = MAX_LINES) -> list[Sighting]:
    """The visible things of which `describe` tells, in its order."""
    return [s for s in scene.look() if s.id != scene.world.robot.held][:max_lines]


def exact_place(seen: Sighting, robot: RobotState) -> str:
    """Where a thing is, as exactly as `describe` says it: `right 92 6 up 12 out 24`."""
    near = seen.distance <= NEAR_M
    step = 2 if near else 6
    angle = step * round(seen.bearing / step)
    side = "ahead" if angle == 0 else "left" if angle > 0 else "right"
    return f"{side} {abs(angle)} {round(10 * seen.distance)}{_from_gripper(seen, robot, 1)}"


def rounded_place(seen: Sighting, robot: RobotState) -> str:
    """Where a thing is, no more exactly than actions can answer: `right 90 6 up 10 out 25`.

    `coarse_place`, and for the gripper steps of 5 cm, which its reach forgives. Fewer numbers are learnt sooner.
    """
    return coarse_place(seen) + _from_gripper(seen, robot, 5)


def _from_gripper(seen: Sighting, robot: RobotState, step: int) -> str:
    """How far the gripper has to go to an item near the arm's side, in cm to `step`; nothing said of others."""
    if seen.distance > NEAR_M or seen.kind != "item" or not -130.0 <= seen.bearing <= -50.0:
        return ""
    up = step * round(100 * (seen.z - robot.gripper[2]) / step)
    out = step * round(100 * (seen.distance - math.dist((robot.x, robot.y), robot.gripper[:2])) / step)
    return f" {'up' if up >= 0 else 'down'} {abs(up)} {'out' if out >= 0 else 'in'} {abs(out)}"


def coarse_place(seen: Sighting) -> str:
    """Where a thing is, as well as eyes can tell: `right 90 6`.

    The bearing from the heading to 6 degrees, the robot's small turn; the distance in decimetres, exact to 1
    up to 1.5 m and to 5 beyond.
    """
    angle = 6 * round(seen.bearing / 6)
    side = "ahead" if angle == 0 else "left" if angle > 0 else "right"
    step = 1 if seen.distance < 1.5 else 5
    return f"{side} {abs(angle)} {step * round(10 * seen.distance / step)}"
