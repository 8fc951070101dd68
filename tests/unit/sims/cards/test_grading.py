"""Parity with the documented rules of the original, case by case, and what the fixed mode corrects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_vlm.sims.cards.deck import Card, Deal
from rllib_vlm.sims.cards.env import Cards
from rllib_vlm.sims.cards.grading import Grade, grade, read, read_as_original

CASES = json.loads((Path(__file__).parents[3] / "golden/cards/parity.json").read_text())["cases"]
DEAL = Deal(tuple(Card(rank, "spades") for rank in (2, 8, 3, 1)), "ten")
NAMED = ["2", "8", "3", "A"]


@pytest.mark.parametrize("case", CASES, ids=[case["why"] for case in CASES])
def test_parity_with_the_original(case: dict[str, Any]) -> None:
    simulator = Cards(
        mode="parity", observation=case["observation"], face_cards=case["face_cards"], image_size=24
    )
    simulator.reset(seed=0, options={"deal": case["deal"]})
    for answer, expected in zip(case["answers"], case["steps"], strict=True):
        _, reward, terminated, truncated, info = simulator.turn([answer])
        assert {"reward": reward, "terminated": terminated, "truncated": truncated} == expected
        assert info.get("success") == (terminated if terminated or truncated else None)


def fixed(text: str, deal: Deal = DEAL, *, vision: bool = False) -> Grade:
    return grade(read(text), deal, 24, vision=vision, parity=False)


def answer(formula: Any, cards: Any = NAMED, **more: Any) -> str:
    return json.dumps({"cards": cards, "formula": formula, **more})


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (answer("(2-1)*3*8"), 5.0),
        (answer("(2-1)*3*8=24"), 5.0),
        (answer("( 2 - 1 ) * 3 * 8 = 24"), 5.0),
        (answer("(2-1)*3*8")[:-1] + ",\n}", 5.0),
        (f"```json\n{answer('(2-1)*3*8')}\n```", 5.0),
        (answer("(2-1)*3*8=25"), -1.0),
        (answer("2+8+3+1"), -1.0),
        (answer("3*8*(2-1"), 1.0),
        (answer("3*8+(2-1"), -1.0),
        (answer("8*3+2*1-"), -1.0),
        (answer("8*3"), -2.0),
        (answer("(2-1)*3*9"), -4.0),
        (answer("-1+2+3*8"), -3.0),
        (answer("*2-1*/3*8"), -6.0),
        (answer("(2-1)×3×8"), -3.0),
        (answer(None), -3.0),
        (answer(24), -3.0),
        ('{"cards": ["2"]}', -3.0),
        ("(2-1)*3*8", -3.0),
        ("", -3.0),
        (answer("(" * 20_000 + "8"), -2.0),
        (answer("9" * 20_000), -4.0),
    ],
)
def test_fixed_rewards(text: str, reward: float) -> None:
    assert fixed(text).reward == reward


def test_fixed_mode_is_exact() -> None:
    deal = Deal(tuple(Card(rank, "clubs") for rank in (3, 3, 8, 8)), "ten")
    assert fixed(answer("8/(3-8/3)"), deal).reward == 5.0


@pytest.mark.parametrize(
    ("cards", "reward"),
    [
        (NAMED, 5.0),
        (["a", "8", " 3", 2], 5.0),
        (["2", "8", "3", "K"], -1.5),
        (["2", "8", "3"], -1.5),
        ("2 8 3 A", -1.5),
        (None, -1.5),
        ([["2"], {}, None, True], -1.5),
    ],
)
def test_fixed_vision_grades_the_cards_first(cards: Any, reward: float) -> None:
    assert fixed(answer("(2-1)*3*8", cards), vision=True).reward == reward
    assert fixed(answer("(2-1)*3*8", cards)).reward == 5.0
    assert fixed("no JSON", vision=True).reward == -3.0


def test_numbers_are_reported_and_not_graded() -> None:
    right = fixed(answer("(2-1)*3*8", number=[1, 2, 3, 8]))
    wrong = fixed(answer("(2-1)*3*8", number=[1, 2, 3, 9]))
    assert (right.numbers_right, wrong.numbers_right) == (True, False)
    assert right.reward == wrong.reward == 5.0


TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(["2", "8", "3", "1", "+", "-", "*", "/", "(", ")", "=", "24", " "]), max_size=14)
    .map("".join)
    .map(answer),
    st.lists(
        st.sampled_from(['"formula": "', '"cards": [', "]", '"', "2", ", ", "8*3", "{", "}", "'A'"])
    ).map("".join),
)


@given(text=TEXTS, vision=st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_text_has_a_grade(text: str, vision: bool) -> None:
    for parity, reader in ((False, read), (True, read_as_original)):
        graded = grade(reader(text), DEAL, 24, vision=vision, parity=parity)
        assert graded.reward in {5.0, 1.0, 0.0, -1.0, -1.5, -2.0, -4.0} or graded.reward <= -3.0
        assert graded.messages
