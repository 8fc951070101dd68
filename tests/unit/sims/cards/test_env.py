"""Deals and splits, episodes, the expert, pictures, and what is refused."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from rllib_vlm.errors import ConfigErrors, SimulatorError, UnknownNameError
from rllib_vlm.prompts import build_parser
from rllib_vlm.sims.cards.deck import NAMES, SUITS, Card, is_heldout
from rllib_vlm.sims.cards.drawing import draw_table
from rllib_vlm.sims.cards.env import Cards


def deals(split: str, count: int = 60, **config: Any) -> list[Any]:
    simulator = Cards(observation="text", **config)
    found = []
    for seed in range(count):
        simulator.reset(seed=seed, options={"split": split})
        found.append(simulator.deal)
    return found


def numbers(deal: Any) -> tuple[int, ...]:
    """As training counts them."""
    return tuple(sorted(min(card.rank, 10) for card in deal.cards))


def test_training_shares_no_numbers_with_any_other_split() -> None:
    train = {numbers(deal) for deal in deals("train", 150)}
    for split in ("heldout", "rule_ood", "visual_ood"):
        others = {numbers(deal) for deal in deals(split)}
        assert len(others) > 10
        assert not train & others


def test_what_each_split_changes() -> None:
    black, red = set(SUITS["black"]), set(SUITS["red"])
    for split, rule, suits in (
        ("train", "ten", black), ("heldout", "ten", black), ("rule_ood", "rank", black), ("visual_ood", "ten", red),
    ):  # fmt: skip
        found = deals(split, 30)
        assert {deal.rule for deal in found} == {rule}
        assert {card.suit for deal in found for card in deal.cards} == suits
        if split == "rule_ood":
            assert all(max(deal.numbers) > 10 for deal in found)
        else:
            assert all(max(deal.numbers) <= 10 for deal in found)


@pytest.mark.parametrize("split", ["train", "heldout", "rule_ood", "visual_ood"])
def test_three_cards_are_dealt_solved_and_split_like_four(split: str) -> None:
    simulator = Cards(cards=3, observation="both", image_size=24)
    parser = build_parser("json")
    for seed in range(12):
        observation, info = simulator.reset(seed=seed, options={"split": split})
        assert info["instruction"].startswith("Make 24 of the three cards, ")
        assert simulator.deal is not None and len(simulator.deal.cards) == 3
        assert observation["text"] == f"cards: {' '.join(simulator.deal.names)}"
        assert is_heldout([card.rank for card in simulator.deal.cards]) == (split != "train")
        answer = parser.format(simulator.expert()(), simulator.actions)
        assert simulator.turn(parser(answer, simulator.actions, 1).actions)[1] == 5.0
    other = numbers(deals("train", 1, cards=3)[0])
    simulator.reset(options={"deal": [NAMES[number - 1] for number in other]})
    with pytest.raises(SimulatorError, match="it must be 3 of"):
        simulator.reset(options={"deal": ["2", "8", "3", "A"]})


def test_the_example_of_an_answer_solves_as_many_cards_as_are_dealt() -> None:
    for cards in (3, 4):
        simulator = Cards(cards=cards, observation="text")
        said = dict(simulator.actions.fields)
        simulator.reset(options={"deal": said["cards"]})
        assert simulator.step(json.dumps(said))[1] == 5.0


def test_parity_knows_four_cards() -> None:
    with pytest.raises(ConfigErrors, match="cards is 3, and mode 'parity' grades 4"):
        Cards(mode="parity", cards=3)
    with pytest.raises(ConfigErrors, match="cards is 5, not a whole number from 3 to 4"):
        Cards(cards=5)


def test_the_rule_and_the_colour_may_be_the_other_way_round() -> None:
    assert {deal.rule for deal in deals("rule_ood", 5, face_cards="rank")} == {"ten"}
    found = deals("visual_ood", 10, suits="red")
    assert {card.suit for deal in found for card in deal.cards} == set(SUITS["black"])


def test_either_rule_may_be_drawn_for_each_deal_and_then_there_is_no_other() -> None:
    found = deals("heldout", 20, face_cards="mixed")
    assert {deal.rule for deal in found} == {"ten", "rank"}
    simulator = Cards(observation="text", face_cards="mixed")
    for seed in range(20):
        _, info = simulator.reset(seed=seed, options={"split": "heldout"})
        said = "each count as 10" if simulator.deal.rule == "ten" else "Q as 12"
        assert said in info["instruction"]
        assert simulator.step(simulator.expert()().actions[0])[1] == 5
    with pytest.raises(SimulatorError, match="'mixed' has none"):
        simulator.reset(seed=0, options={"split": "rule_ood"})


def test_a_ten_in_place_of_a_king_is_no_new_task() -> None:
    assert is_heldout((13, 5, 2, 1)) == is_heldout((1, 2, 5, 10)) == is_heldout((11, 2, 1, 5))


@pytest.mark.parametrize("split", ["train", "heldout", "rule_ood", "visual_ood"])
@pytest.mark.parametrize("observation", ["vision", "text", "both"])
@pytest.mark.parametrize("mode", ["fixed", "parity"])
def test_the_expert_solves_every_deal_at_once(mode: Any, observation: Any, split: str) -> None:
    simulator = Cards(mode=mode, observation=observation, image_size=24)
    parser = build_parser("json", verbatim=mode == "parity")
    for seed in range(8):
        simulator.reset(seed=seed, options={"split": split})
        expert = simulator.expert()
        said = expert()
        parsed = parser(parser.format(said, simulator.actions), simulator.actions, 1)
        _, reward, terminated, truncated, info = simulator.turn(parsed.actions)
        assert (reward, terminated, truncated, info["success"]) == (5.0, True, False, True)
        assert info["metrics"] == {
            "tries": 1.0, "cards_right": 1.0, "numbers_right": 1.0, "solved_at_once": 1.0,
        }  # fmt: skip
        assert expert().actions == ()


def wrong() -> str:
    return json.dumps({"cards": ["2", "8", "3", "A"], "number": [2, 8, 3, 1], "formula": "2+8+3+1"})


def test_a_wrong_answer_is_explained_and_five_end_the_episode() -> None:
    simulator = Cards(observation="text")
    observation, info = simulator.reset(seed=0, options={"deal": ["2", "8", "3", "A"]})
    assert observation == {"text": "cards: 2 8 3 A"}
    assert info["instruction"].endswith("J, Q and K each count as 10.")
    for left in (4, 3, 2, 1, 0):
        observation, reward, terminated, truncated, info = simulator.turn([wrong()])
        assert observation["text"] == (
            f"cards: 2 8 3 A\nwrong: your formula makes 14, not 24\ntries left: {left}"
        )
        assert (reward, terminated, truncated) == (-1.0, left == 0, False)
        assert info["state"] == {"tries_left": left / 5}
        assert info.get("success") == (None if left else False)
    with pytest.raises(SimulatorError, match="over"):
        simulator.turn([wrong()])


def test_no_answer_costs_a_try() -> None:
    simulator = Cards(observation="text", tries=1)
    simulator.reset(seed=0)
    assert simulator.turn([])[1:3] == (-3.0, True)


def test_a_picture_says_what_the_text_does_not() -> None:
    simulator = Cards(image_size=56)
    observation, _ = simulator.reset(seed=0)
    assert observation["text"] == ""
    assert observation["images"].shape == (1, 56, 56, 3)
    observation, *_ = simulator.turn([wrong()])
    assert "cards:" not in observation["text"]
    assert "wrong: these are not the cards" in observation["text"]


@pytest.mark.parametrize("pixels", [56, 112])
def test_ranks_differ_in_small_pictures(pixels: int) -> None:
    tables = [draw_table([Card(rank, "spades")] * 4, pixels).astype(float) for rank in range(1, 14)]
    closest = min(np.abs(a - b).mean() for a, b in combinations(tables, 2))
    # Most of a picture is felt and paper, the same for all: a hundredth of full scale is hundreds of pixels.
    assert closest > 2.5


def test_colours_show_the_suit() -> None:
    red = draw_table([Card(5, "hearts")] * 4, 84).astype(int)
    black = draw_table([Card(5, "clubs")] * 4, 84).astype(int)
    is_red = [(t[..., 0] > 150) & (t[..., 1] < 90) for t in (red, black)]
    assert is_red[0].sum() > 200
    assert is_red[1].sum() == 0


def test_one_suit_of_a_colour_does_not_look_like_the_other() -> None:
    for one, other in (SUITS["black"], SUITS["red"]):
        a, b = (draw_table([Card(5, suit)] * 4, 56).astype(float) for suit in (one, other))
        assert np.abs(a - b).mean() > 0.5


def test_the_picture_belongs_to_the_caller() -> None:
    simulator = Cards(image_size=24, render_mode="rgb_array")
    simulator.reset(seed=0)
    picture = simulator.render()
    assert picture is not None
    picture[:] = 0
    again = simulator.render()
    assert again is not None and again.any()


def test_wrong_arguments_are_named_all_at_once() -> None:
    with pytest.raises(ConfigErrors) as raised:
        Cards(
            mode="fixd",  # type: ignore[arg-type]
            observation="text",
            face_cards="tens",  # type: ignore[arg-type]
            suits="blue",  # type: ignore[arg-type]
            target=0,
            tries=True,
            image_size=8,
            render_mode="human",
        )
    assert len(raised.value.errors) == 7
    assert "Did you mean 'fixed'" in str(raised.value)
    assert "Did you mean 'ten'" in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "not one of train, heldout, rule_ood, visual_ood"),
        ({"deal": ["A", "A", "A", "A"]}, "no formula makes 24 of the cards A, A, A, A"),
        ({"deal": ["1", "2", "3"]}, f"it must be 4 of {', '.join(NAMES)}"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SimulatorError, match=message):
        Cards(observation="text").reset(seed=0, options=options)


def test_a_mixed_deck_has_no_other_colour() -> None:
    with pytest.raises(SimulatorError, match="other colour"):
        Cards(observation="text", suits="mixed").reset(seed=0, options={"split": "visual_ood"})
    with pytest.raises(UnknownNameError, match="split"):
        Cards(observation="text").reset(seed=0, options={"splitt": "train"})


def test_grades_tell_which_try_an_answer_was() -> None:
    simulator = Cards(observation="text", tries=3)
    simulator.reset(seed=0)
    answers = ["", '{"formula": "1+1"}', json.dumps({"formula": simulator.solution()})]
    grades = [grade for text in answers for grade in simulator.step(text)[4]["grades"]]
    assert grades == [
        {"attempt": 1, "correct": False, "verdict": "illegal_formula"},
        {"attempt": 2, "correct": False, "verdict": grades[1]["verdict"]},
        {"attempt": 3, "correct": True, "verdict": "correct_solution"},
    ]
    assert grades[1]["verdict"] in ("wrong_numbers", "several_faults")
    parity = Cards(observation="text", mode="parity", tries=1)
    parity.reset(seed=0)
    after = [parity.step("")[4]["grades"][0] for _ in range(2)]
    assert [(g["attempt"], g["verdict"]) for g in after] == [(1, "illegal_formula"), (2, "exceeded")]


def test_the_other_look_of_cards_in_words_is_other_words() -> None:
    told = {}
    for split in ("heldout", "visual_ood"):
        simulator = Cards(observation="text_suits")
        observation, _ = simulator.reset(seed=3, options={"split": split})
        assert simulator.deal is not None
        words = observation["text"].removeprefix("cards: ").split()
        assert words[::2] == list(simulator.deal.names)
        assert "images" not in observation
        told[split] = set(words[1::2])
    assert told["heldout"] <= {"spades", "clubs"}
    assert told["visual_ood"] <= {"hearts", "diamonds"}
