"""Free floor, fields, ways and the actions that follow them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_vlm.sims.household.floorplan import Clearance
from rllib_vlm.sims.household.houses import generate_house
from rllib_vlm.sims.household.planner import NavigationMap, Pose, drive, turns, wrap_deg
from rllib_vlm.sims.household.world import Door, Furniture, House, Room

RADIUS = 0.25


@pytest.fixture(scope="module")
def two_rooms() -> NavigationMap:
    """Two rooms of 3 x 3 m side by side, a door in the middle of the shared wall, a block in the left one."""
    rooms = (Room("a", "kitchen", 0, 0, 3, 3), Room("b", "office", 3, 0, 6, 3))
    door = Door("d", ("a", "b"), 3.0, 1.5, 1.0, "x")
    block = Furniture("f", "cabinet", "a", 1.5, 1.5, 0.0, 0.6, 0.6, 0.8, "oak", True)
    return NavigationMap(House(0, "train", rooms, (door,), (block,), ()), RADIUS)


def test_what_is_free(two_rooms: NavigationMap) -> None:
    nav = two_rooms
    for x, y, free in (
        (0.7, 0.7, True), (1.5, 1.5, False), (0.1, 1.5, False), (3.0, 1.5, True), (3.0, 0.5, False),
        (1.0, 1.5, False), (0.9, 1.5, True),
    ):  # fmt: skip
        assert nav.free[nav.cell(x, y)] == free, (x, y)


def test_metric_field_is_the_geodesic_distance(two_rooms: NavigationMap) -> None:
    field = two_rooms.field([(5.0, 1.5)], comfortable=False)
    assert two_rooms.value(field, 3.0, 1.5) == pytest.approx(2.0, abs=0.01)
    straight = math.dist((0.5, 2.0), (5.0, 1.5))
    # On an 8-connected grid a way is at most 8.3% longer than the true one.
    assert straight < two_rooms.value(field, 0.5, 2.0) < 1.15 * straight
    assert math.isinf(two_rooms.value(two_rooms.field([], comfortable=False), 1.0, 0.5))


def test_sight_stops_at_walls_and_passes_doors(two_rooms: NavigationMap) -> None:
    assert two_rooms.in_sight((0.5, 1.5), (5.5, 1.5))
    assert not two_rooms.in_sight((1.0, 0.4), (5.0, 0.4))
    behind, beside = (2.5, 1.5), (0.5, 0.5)
    assert two_rooms.in_sight((0.5, 1.5), behind)  # the block is low
    assert two_rooms.straight_free((0.5, 1.5), [behind, beside]).tolist() == [False, True]  # but in the way


@given(seed=st.integers(0, 3), draw=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_lines_are_looked_up_as_each_alone_and_known_ways_are_the_ways(seed: int, draw: int) -> None:
    house = generate_house(seed, "train", rooms=(2, 2))
    nav, grid, rng = NavigationMap(house, RADIUS), Clearance.of(house), np.random.default_rng(draw)
    a, b = (rng.uniform((nav.xs[0], nav.ys[0]), (nav.xs[-1], nav.ys[-1]), (6, 2)) for _ in range(2))
    b[0] = a[0]  # no way at all
    for p, q, found in zip(a.tolist(), b.tolist(), grid.least_between(a.tolist(), b.tolist()), strict=True):
        n = max(2, math.ceil(math.dist(p, q) / grid.step) + 1)
        on_the_way = zip(
            np.linspace(p[0], q[0], n).tolist(), np.linspace(p[1], q[1], n).tolist(), strict=True
        )
        assert found == min(float(grid.values[grid.index(x, y)]) for x, y in on_the_way)
    field = nav.field([(d.x, d.y) for d in house.doors])
    known: dict[tuple[int, int], tuple[int, int]] = {}
    for p in a.tolist():
        way = nav.descend(field, *p)
        assert nav.descend(field, *p, known) == way
        values = [nav.value(field, *q) for q in way]
        assert values == sorted(values, reverse=True)


@given(error=st.floats(-180.0, 179.9), tolerance=st.floats(3.1, 12.0))
@settings(max_examples=100, deadline=None)
def test_turns_end_within_tolerance(error: float, tolerance: float) -> None:
    pose, taken = Pose(0.0, 0.0, 0.0), 0
    while (action := turns(wrap_deg(error - pose.yaw), tolerance=tolerance)) is not None:
        pose, taken = pose.after(action), taken + 1
        assert taken <= 10
    assert abs(wrap_deg(error - pose.yaw)) <= tolerance


@given(seed=st.integers(0, 30), draw=st.integers(0, 10))
@settings(max_examples=20, deadline=None)
def test_drives_reach_their_goal_without_bumping(seed: int, draw: int) -> None:
    nav = NavigationMap(generate_house(seed, "heldout", rooms=(2, 3)), RADIUS)
    rng = np.random.default_rng(draw)
    field0 = nav.field([(d.x, d.y) for d in nav.house.doors])
    start = nav.random_pose(rng, np.isfinite(field0))
    goal = nav.random_pose(rng, np.isfinite(field0))
    assert start is not None and goal is not None
    field = nav.field([goal.point])
    pose, total = start, 0
    while math.dist(pose.point, goal.point) > 0.15:
        actions, pose_after = drive(nav, field, pose, lambda p: math.dist(p.point, goal.point) <= 0.15, 5)
        assert actions, "the drive stalls"
        for action in actions:
            pose = pose.after(action)
            assert nav.clearance_at(*pose.point) > 0.15  # the base's radius is 0.2, the grid is 0.05
        assert pose == pose_after
        total += len(actions)
        assert total < 150


def test_move_and_turn_of_a_pose() -> None:
    pose = Pose(1.0, 1.0, 90.0).after("move_ahead")
    assert (pose.x, pose.y) == pytest.approx((1.0, 1.2))
    assert Pose(0, 0, 170.0).after("rotate_left").yaw == pytest.approx(-160.0)
    assert Pose(0, 0, 90.0).bearing(-1.0, 0.0) == pytest.approx(90.0)
    assert Pose(1, 2, 3).after("arm_out") == Pose(1, 2, 3)
