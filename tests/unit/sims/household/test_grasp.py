"""Standing points and arm steps, and that the planner's robot is the simulator's."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_vlm.sims.household import planner
from rllib_vlm.sims.household import robot as rb
from rllib_vlm.sims.household.episode import Place
from rllib_vlm.sims.household.grasp import (
    ARM_SMALL_STEP_M,
    ARM_STEP_M,
    STRETCH,
    arm_actions,
    can_stand,
    side_bearing,
)
from rllib_vlm.sims.household.houses import generate_house
from rllib_vlm.sims.household.planner import Pose
from rllib_vlm.sims.household.world import RobotState


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


@pytest.mark.parametrize("seed", range(4))
def test_every_item_has_standing_points_within_reach(seed: int) -> None:
    place = Place(generate_house(seed, "train"))
    for item in place.house.items:
        mask = place.standing(item)
        target = place.as_target(item)
        assert mask.any(), item
        for i, j in np.argwhere(mask):
            pose = Pose(float(place.nav.xs[i]), float(place.nav.ys[j]), 0.0)
            assert STRETCH.gripper_min < math.dist(pose.point, (item.x, item.y)) < STRETCH.gripper_max
            assert place.nav.clearance_at(*pose.point) >= rb.STOWED_RADIUS - 0.01
            assert can_stand(STRETCH, place.nav, mask, pose, target)
