"""Rails and grades: what V-IRL does, and what is corrected."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from street_data import BEND, SHORT, milestones, panoramas, place, record

from rllib_vlm.errors import DataError
from rllib_vlm.sims.streetview.geo import PanoramaIndex
from rllib_vlm.sims.streetview.grading import Answer, grade, grade_original, read_field
from rllib_vlm.sims.streetview.rail import Node, Rail, RailSettings, build_rail, turn_word
from rllib_vlm.sims.streetview.routes import parse_route

INDEX = PanoramaIndex(panoramas())


def rail(route: dict[str, Any], heading: float = 350.0, **settings: Any) -> Rail:
    chosen = RailSettings(**{"drop_rate": 0.0, **settings})
    return build_rail(parse_route(route), heading, INDEX, chosen, random.Random(0))


def test_turn_words() -> None:
    words = {d: turn_word(d) for d in (-180, -46, -45, 0, 1, 45, 46, 179)}
    assert words == {
        -180: "left", -46: "left", -45: "slightly left", 0: "slightly left", 1: "slightly right",
        45: "slightly right", 46: "right", 179: "right",
    }  # fmt: skip


def test_the_way_around_a_bend() -> None:
    made = rail(BEND)
    assert made.text == (
        "1. First, turn slightly right to face north.\n"
        "2. Move forward until you reach next intersection where Lucky Diner is on your right.\n"
        "3. Turn right to face east.\n"
        "4. Move forward until you reach destination where The destination Bank is on your left.\n"
    )
    # Way points at 12, 24, 36, 48 and 60 m snap to 10, 20, 40 and 50 m; the last is the corner itself.
    assert [(n.pano_id, n.heading, n.action, n.number, n.intersection) for n in made.nodes] == [
        ("pano_000000", 350, "turn_direction(north)", 1, False),
        ("pano_000010", 10, "forward()", 2, False),
        ("pano_000020", 10, "forward()", 2, False),
        ("pano_000040", 10, "forward()", 2, False),
        ("pano_000050", 10, "forward()", 2, False),
        ("pano_000060", 10, "turn_direction(east)", 3, True),
        ("pano_010060", 90, "forward()", 4, False),
        ("pano_020060", 90, "forward()", 4, False),
        ("pano_030060", 90, "forward()", 4, False),
        ("pano_040060", 90, "stop()", 4, False),
    ]


def test_turns_across_north_are_mistaken_by_the_original_alone() -> None:
    assert rail(BEND, original=True).instructions[0] == "First, turn left to face north."
    assert rail(BEND, original=True, absolute=False).nodes[0].action == "turn_direction(left)"
    assert rail(BEND, absolute=False).nodes[0].action == "turn_direction(slightly right)"


def test_key_points_close_together_shift_instructions_in_the_original_alone() -> None:
    def told(made: Rail) -> list[tuple[str, int]]:
        return [(n.action, n.number) for n in made.nodes if n.action != "forward()"]

    north = "turn_direction(north)"
    east = "turn_direction(east)"
    assert told(rail(SHORT)) == [(north, 1), (east, 3), (east, 5), ("stop()", 6)]
    assert told(rail(SHORT, original=True)) == [(north, 1), (east, 3), (east, 4), ("stop()", 5)]
    # The original goes from one turn to the next; corrected, there is a way forward between them.
    actions = [n.action for n in rail(SHORT).nodes]
    assert (east, "forward()", east) in zip(actions, actions[1:], actions[2:], strict=False)
    actions = [n.action for n in rail(SHORT, original=True).nodes]
    assert (east, east) in pairwise(actions)


def test_names_for_nothing() -> None:
    assert rail(SHORT, original=True).nodes[5].landmark == "No landmark nearby"
    assert rail(SHORT).nodes[5].landmark == "No landmarks nearby"
    assert rail(SHORT).instructions[1] == "Move forward until you reach next intersection."


def test_without_relocation_the_original_walks_one_step_too_many() -> None:
    counts = [
        [n.action for n in rail(BEND, relocation=False, original=original).nodes].count("forward()")
        for original in (True, False)
    ]
    assert counts == [10, 8]


def test_dropped_way_points_and_random_numbers() -> None:
    rng = random.Random(3)
    made = build_rail(parse_route(BEND), 0.0, INDEX, RailSettings(original=True, drop_rate=1.0), rng)
    expected = random.Random(3)
    for _ in range(10):  # five for each of two segments, dropped or not
        expected.random()
    assert rng.random() == expected.random()
    assert [n.action for n in made.nodes] == ["turn_direction(north)", "turn_direction(east)", "stop()"]
    assert [n.action for n in rail(BEND, drop_rate=1.0).nodes].count("forward()") == 2


def test_no_panorama_comes_twice_in_a_row() -> None:
    close = record([(0, 0), (0, 60)], milestones(("0 (north)", "x")))
    made = rail(close, original=True, straight_line_length=12)
    panos = [n.pano_id for n in made.nodes]
    assert any(a == b for a, b in pairwise(panos))
    panos = [n.pano_id for n in rail(close, straight_line_length=12).nodes]
    assert not any(a == b for a, b in pairwise(panos))


def test_a_key_point_without_panorama_is_named() -> None:
    far = record([(0, 0), (300, 0)], milestones(("90 (east)", None)))
    with pytest.raises(DataError, match="within 20 m of the place 1"):
        rail(far)


def node(**changes: Any) -> Node:
    given: dict[str, Any] = {
        "place": place(0, 0), "heading": 0.0, "action": "forward()", "landmark": "Cafe is on your left",
        "intersection": False, "instruction": "Move on.", "number": 2,
    }  # fmt: skip
    return Node(**{**given, **changes})


@pytest.mark.parametrize(
    ("answer", "at", "verdict"),
    [
        (Answer(action="forward()", observation="an intersection", instruction="x"), {}, "correct_action"),
        (Answer(action="stop()"), {}, "incorrect_action"),
        (Answer(action="stop()", observation="a cafe"), {}, "incorrect_action"),
        (Answer(action="stop()", observation="an Intersection"), {}, "incorrect_observation"),
        (Answer(action="stop()", observation="an intersection"), {"intersection": True}, "incorrect_action"),
        (Answer(action="stop()", observation="a cafe"), {"intersection": True}, "incorrect_observation"),
        (Answer(action="stop()", observation="a", instruction="Turn left."), {}, "incorrect_instruction"),
        (Answer(action="stop()", observation="a", instruction='"2. move on"'), {}, "incorrect_action"),
        (Answer(action=None, observation="an intersection"), {}, "incorrect_action"),
    ],
)
def test_corrected_grades(answer: Answer, at: dict[str, Any], verdict: str) -> None:
    assert grade(answer, node(**at), grade_instruction=True).verdict == verdict
    if verdict == "incorrect_instruction":
        assert grade(answer, node(**at), grade_instruction=False).verdict == "incorrect_action"


@pytest.mark.parametrize(
    ("text", "at", "verdict"),
    [
        ('{"action": "forward()"}', {}, "correct_action"),
        ('{"action": "stop()", "action": "forward()"}', {}, "correct_action"),  # the last of two keys
        ('"action": "stop()" "action": "forward()"', {}, "incorrect_action"),  # the first match
        ('{"action": "forward()",}', {}, "correct_action"),
        ('{"action":"forward()",}', {}, "incorrect_action"),  # the pattern wants a blank
        ('{"action": "Forward()"}', {}, "incorrect_action"),
        ('{"action": " forward()"}', {}, "incorrect_action"),
        ('{"action": ["forward()"]}', {}, "incorrect_action"),
        ("forward()", {}, "incorrect_action"),
        ("", {}, "incorrect_action"),
        ('{"current observation": "intersection", "action": "x"}', {"intersection": True}, "incorrect_observation"),
        ('{"current observation": "x", "action": "stop()"}', {"landmark": "an intersection"}, "incorrect_observation"),
        ('{"current observation": "x", "action": "stop()"}', {"landmark": "Intersection"}, "incorrect_action"),
        ('{"current observation": ["intersection"], "action": "stop()"}', {}, "incorrect_observation"),
        ('{"current observation": 7, "action": "stop()"}', {}, "incorrect_action"),
        ('{"current observation": null, "action": "stop()"}', {}, "incorrect_action"),
        ("[" * 100_000, {}, "incorrect_action"),
    ],
)  # fmt: skip
def test_the_original_s_grades(text: str, at: dict[str, Any], verdict: str) -> None:
    assert grade_original(text, node(**at)).verdict == verdict


def test_fields_of_other_texts() -> None:
    assert read_field("[1]", "action") == read_field("3", "action") == "None"
    assert read_field('say "action": "a\nb"', "action") == "None"
