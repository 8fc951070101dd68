"""SPOC's shaping terms, each seen paying and seen not paying twice."""

import pytest

from rllib_vlm.sims.household.metrics import EpisodeRecord, weighted_success
from rllib_vlm.sims.household.rewards import RewardWeights, Shaping, Situation, reward_weights

START = Situation(distance=3.0, gripper_distance=4.0, cell=(0, 0), room="a")


def shaping(**kwargs: object) -> Shaping:
    return Shaping(RewardWeights(), start=START, visits_rooms=bool(kwargs.get("visits_rooms")))


def test_only_new_closest_distances_pay() -> None:
    s = shaping()
    assert s(Situation(distance=2.5, gripper_distance=4.0)) == pytest.approx(0.5)
    assert s(Situation(distance=2.9, gripper_distance=4.0)) == 0.0  # back
    assert s(Situation(distance=2.5, gripper_distance=4.0)) == 0.0  # and forth
    assert s(Situation(distance=2.4, gripper_distance=4.0)) == pytest.approx(0.1)


def test_the_gripper_pays_within_its_range() -> None:
    s = shaping()
    assert s(Situation(distance=3.0, gripper_distance=1.5)) == 0.0
    assert s(Situation(distance=3.0, gripper_distance=0.8)) == pytest.approx(5 * 0.2)
    assert s(Situation(distance=3.0, gripper_distance=0.9)) == 0.0


def test_graspable_and_held_pay_once() -> None:
    s = shaping()
    assert s(Situation(distance=3.0, graspable=True)) == 5.0
    assert s(Situation(distance=3.0, graspable=True)) == 0.0
    assert s(Situation(distance=3.0, held=True)) == 5.0
    assert s(Situation(distance=3.0)) == 0.0
    assert s(Situation(distance=3.0, graspable=True, held=True)) == 0.0


def test_cells_and_rooms_pay_in_room_visits_only() -> None:
    s = shaping(visits_rooms=True)
    assert s(Situation(cell=(0, 1), room="a")) == pytest.approx(0.005)
    assert s(Situation(cell=(0, 1), room="b")) == pytest.approx(2.0)
    assert s(Situation(cell=(0, 0), room="a")) == 0.0
    assert shaping()(Situation(cell=(5, 5), room="z")) == 0.0


def test_weights_from_a_mapping() -> None:
    weights, problems = reward_weights({"success": 1.0, "picked_up": 0})
    assert (weights.success, weights.picked_up, weights.graspable, problems) == (1.0, 0, 5.0, [])
    _, problems = reward_weights({"succes": 1.0, "step": "x"})
    assert len(problems) == 2
    assert "'success'" in problems[0]


def test_weighted_success() -> None:
    assert weighted_success(True, 10, 20) == 0.5
    assert weighted_success(True, 20, 10) == 1.0
    assert weighted_success(False, 10, 20) == 0.0
    assert weighted_success(True, 0, 0) == 1.0


def test_record_reports_finite_figures() -> None:
    record = EpisodeRecord(expert_length=10, shortest_path_m=2.0, steps=20, path_m=4.0)
    record.rooms = {"a", "b"}
    figures = record.metrics(success=True, distance_to_target_m=float("inf"), rooms_in_house=4)
    assert figures["sel"] == figures["spl"] == 0.5
    assert figures["rooms_visited_share"] == 0.5
    assert figures["distance_to_target"] == 0.0
    assert all(isinstance(v, float) for v in figures.values())
