"""Standing points and arm steps, and that the planner's robot is the simulator's."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_vlm.sims.household import planner
from rllib_vlm.sims.household import robot as rb
from rllib_vlm.sims.household.grasp import (
    ARM_SMALL_STEP_M,
    ARM_STEP_M,
    STRETCH,
    arm_actions,
    can_stand,
    grasp_heights,
    side_bearing,
)
from rllib_vlm.sims.household.houses import generate_house
from rllib_vlm.sims.household.place import Place
from rllib_vlm.sims.household.planner import Pose
from rllib_vlm.sims.household.world import RobotState, Split


def test_the_planners_robot_is_the_simulators() -> None:
    assert (planner.MOVE_M, planner.TURN_DEG, planner.SMALL_TURN_DEG) == (
        rb.MOVE_M,
        rb.TURN_DEG,
        rb.SMALL_TURN_DEG,
    )
    assert (ARM_STEP_M, ARM_SMALL_STEP_M) == (rb.ARM_M, rb.SMALL_ARM_M)
    assert STRETCH.radius > rb.BASE_RADIUS
    assert STRETCH.gripper_min == pytest.approx(rb.ARM_REACH + rb.ARM_RANGE[0])
    assert STRETCH.gripper_max == pytest.approx(rb.ARM_REACH + rb.ARM_RANGE[1])
    assert (STRETCH.lift_min, STRETCH.lift_max) == rb.LIFT_RANGE


@given(error=st.floats(-0.6, 0.6), tolerance=st.sampled_from([0.01, 0.03, 0.05]))
@settings(max_examples=100, deadline=None)
def test_arm_actions_end_within_tolerance(error: float, tolerance: float) -> None:
    step = {"out": 0.1, "in": -0.1, "out_small": 0.02, "in_small": -0.02}
    left = error - sum(step[a] for a in arm_actions(error, "out", "in", tolerance=tolerance))
    assert abs(left) <= tolerance + 1e-6


def test_the_arm_points_to_the_right() -> None:
    robot = RobotState(0, 0, 90.0, 0.7, 0.0, 0.0, (0.25, 0.0, 0.7), None)
    assert side_bearing(robot, 1.0, 0.0) == pytest.approx(0.0)
    assert side_bearing(robot, 1.0, 0.2) == pytest.approx(math.degrees(math.atan(0.2)))  # turn left


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_tasks_leave_out_hardly_any_item(split: Split) -> None:
    """What has no standing point is never asked for: the tasks must not be trimmed to what is easy."""
    asked: dict[str, list[bool]] = {}
    viewed: list[bool] = []
    for seed in range(12):
        place = Place(generate_house(seed, split, rooms=(2, 3)))
        for item in place.house.items:
            if item.pickupable:
                asked.setdefault(item.type, []).append(bool(place.standing(item).any()))
            viewed.append(bool(place.viewing(item).any()))
    flat = [a for kind in asked.values() for a in kind]
    assert sum(flat) >= 0.97 * len(flat)
    assert sum(viewed) >= 0.97 * len(viewed)
    for kind in ("apple", "book", "bowl", "plate", "remote"):  # low ones, hardest to take
        assert sum(asked.get(kind, [True])) >= 0.75 * len(asked.get(kind, [True])), kind


def test_standing_points_are_free_and_within_reach() -> None:
    place = Place(generate_house(1, "train"))
    for item in place.house.items:
        mask, target = place.standing(item), place.as_target(item)
        for i, j in np.argwhere(mask):
            pose = Pose(float(place.nav.xs[i]), float(place.nav.ys[j]), 0.0)
            assert STRETCH.gripper_min < math.dist(pose.point, (item.x, item.y)) < STRETCH.gripper_max
            assert place.nav.clearance_at(*pose.point) >= rb.BASE_RADIUS
            assert can_stand(STRETCH, place.nav, mask, pose, target)


def test_grasp_height_clears_the_surface_and_meets_the_item() -> None:
    place = Place(generate_house(1, "train"))
    for item in place.house.items:
        target = place.as_target(item)
        low, high = grasp_heights(STRETCH, target)
        assert target.bottom < low < high <= STRETCH.lift_max
        assert max(high - target.top, target.bottom - low) < STRETCH.grasp_radius
