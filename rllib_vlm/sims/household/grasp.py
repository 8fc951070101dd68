"""Where to stand to take an item, and which arm actions take it.

The arm reaches out to the robot's right. A standing point is a place on the floor from which the
arm, held out towards the item at the item's height, meets nothing else on its way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rllib_vlm.sims.household.floorplan import footprint
from rllib_vlm.sims.household.planner import NavigationMap, Point, Pose
from rllib_vlm.sims.household.world import RobotState

ARM_CLEARANCE_M = 0.035  # of the grasp centre above a surface: half the arm, and a little
ARM_STEP_M, ARM_SMALL_STEP_M = 0.1, 0.02  # SPOC's step sizes, for the lift and for the arm


@dataclass(frozen=True, slots=True)
class Body:
    """What the planner knows of a robot's shape. Distances in metres from the base's centre."""

    radius: float  # keeps this far from obstacles
    gripper_min: float  # of the grasp centre, arm retracted
    gripper_max: float  # of the grasp centre, arm out
    grasp_radius: float  # of the gripper's sphere
    lift_min: float  # lowest and highest grasp centre above the floor
    lift_max: float
    arm_width: float = 0.07  # half the width the arm sweeps


STRETCH = Body(
    radius=0.25, gripper_min=0.25, gripper_max=0.75, grasp_radius=0.1, lift_min=0.2, lift_max=1.1
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """An item to take: where it is now, and how large it is."""

    id: str
    x: float
    y: float
    z: float
    top: float  # height of its upper end
    radius: float  # half its larger horizontal extent
    depth: float  # from its centre to its side, on average

    @property
    def bottom(self) -> float:
        """Height of its lower end, which is the top of what it stands on."""
        return 2.0 * self.z - self.top


def standing_points(
    nav: NavigationMap, body: Body, target: Target, others: list[Target], *, margin: float = 0.06
) -> NDArray[np.bool_]:
    """Which grid points one can take the target from; a stricter choice first, a looser one if it is empty."""
    near, far = body.gripper_min + margin, body.gripper_max - margin
    ring = nav.free & nav.within(target.x, target.y, near, far)
    result = np.zeros_like(ring)
    cells = np.argwhere(ring)
    points = np.stack([nav.xs[cells[:, 0]], nav.ys[cells[:, 1]]], 1)
    for k in np.flatnonzero(_passes_furniture(nav, body, points, target)):
        result[tuple(cells[k])] = _passes_items(body, points[k].tolist(), target, others)
    roomy = result & (nav.clearance >= body.radius + 0.04)
    return roomy if roomy.any() else result


def _passes_furniture(
    nav: NavigationMap, body: Body, points: NDArray[np.float64], target: Target
) -> NDArray[np.bool_]:
    """[N] whether the arm passes walls and furniture between points [N, 2] and the target."""
    if not len(points):
        return np.zeros(0, np.bool_)
    end = np.array([target.x, target.y])
    passes = nav.all_in_sight(points.tolist(), (target.x, target.y), body.arm_width)
    samples = points[:, None] + np.linspace(0.0, 1.0, 12)[:, None] * (end - points)[:, None]  # [N, 12, 2]
    for piece in nav.house.furniture:
        # What is no higher than the top the item stands on (its own receptacle above all) is passed over.
        if piece.height <= target.bottom + 0.01:
            continue
        x0, y0, x1, y1 = footprint(piece)
        inside = (samples >= (x0 - body.arm_width, y0 - body.arm_width)) & (
            samples <= (x1 + body.arm_width, y1 + body.arm_width)
        )
        passes &= ~inside.all(-1).any(-1)
    return passes


def _passes_items(body: Body, p: Point, target: Target, others: list[Target]) -> bool:
    """Whether no other item stands in the arm's way from p to the target."""
    ux, uy = target.x - p[0], target.y - p[1]
    length = math.hypot(ux, uy) or 1e-9
    ux, uy = ux / length, uy / length
    for other in others:
        if other.id == target.id or other.top < target.z - body.arm_width or other.z > target.z + 0.4:
            continue
        along = (other.x - p[0]) * ux + (other.y - p[1]) * uy
        across = abs((other.x - p[0]) * uy - (other.y - p[1]) * ux)
        if 0.0 < along < length + 0.02 and across < other.radius + body.arm_width:
            return False
    return True


def can_stand(body: Body, nav: NavigationMap, mask: NDArray[np.bool_], pose: Pose, target: Target) -> bool:
    """Whether the target can be taken from where the robot is: on, or next to, a standing point."""
    distance = math.dist(pose.point, (target.x, target.y))
    if not body.gripper_min <= distance <= body.gripper_max + 0.02:
        return False
    i, j = nav.cell(pose.x, pose.y)
    return bool(mask[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].any())


def grasp_heights(body: Body, target: Target) -> tuple[float, float]:
    """Lowest and highest good height of the grasp centre: clear of what the item stands on, near its body."""
    low = max(target.z - 0.03, target.bottom + ARM_CLEARANCE_M)
    high = max(target.z + 0.07, low + 0.02) if target.top > low + 0.05 else target.top + 0.05
    return (
        min(max(low, body.lift_min), body.lift_max),
        min(max(high, low + 0.02, body.lift_min), body.lift_max),
    )


def steps_to(error: float, *, tolerance: float) -> tuple[int, int]:
    """Large and small arm steps (both signed) that take off a length error to within a tolerance."""
    large = int(abs(error) / ARM_STEP_M + 0.5)
    sign = 1 if error > 0 else -1
    rest = error - sign * large * ARM_STEP_M
    small = 0 if abs(rest) <= tolerance + 1e-6 else round(rest / ARM_SMALL_STEP_M)
    return sign * large, small


def arm_actions(error: float, positive: str, negative: str, *, tolerance: float = 0.03) -> list[str]:
    """Actions that move the lift or the arm by `error` metres: the large steps, then the small ones."""
    large, small = steps_to(error, tolerance=tolerance)
    actions = [positive if large > 0 else negative] * abs(large)
    return actions + [f"{positive if small > 0 else negative}_small"] * abs(small)


def side_bearing(robot: RobotState, x: float, y: float) -> float:
    """Where (x, y) lies from the arm's direction, degrees, positive: the robot must turn left."""
    return Pose(robot.x, robot.y, robot.yaw - 90.0).bearing(x, y)
