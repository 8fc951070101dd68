"""What goes beyond acting: questions beside an expert's turns, and pictures that show nothing."""

from __future__ import annotations

import re

import pytest

from rllib_vlm.errors import ConfigErrors
from rllib_vlm.sims.household.env import Household


def test_answers_are_true_and_in_the_order_of_the_question() -> None:
    env = Household(observation="text", questions=5)
    absent = present = 0
    for seed in range(12):
        env.reset(seed=seed, options={"start": "near"})
        shown = env.expert(max_actions=5)()
        assert len(shown.questions) == 1
        question, answer = shown.questions[0]
        names = re.findall(r"the ([a-z ]+?)(?: ,|$)", question)
        parts = answer.split("; ")
        assert 1 <= len(names) <= 5 and len(names) == len(parts)
        nearest: dict[str, str] = {}
        for seen in env.scene.look():
            if seen.kind != "door":
                nearest.setdefault(seen.words, env.where(seen))
        for name, part in zip(names, parts, strict=True):
            assert part == f"{name} {nearest.get(name, 'not seen')}"
            present += name in nearest
            absent += name not in nearest
    assert present > 12 and absent > 5
    env.close()


def test_the_same_seed_asks_the_same_and_no_questions_change_nothing_else() -> None:
    asked = []
    for questions in (4, 4, 0):
        env = Household(observation="text", questions=questions)
        env.reset(seed=3)
        expert = env.expert(max_actions=5)
        turns = []
        for _ in range(4):
            shown = expert()
            turns.append((shown.actions, shown.questions))
            env.turn(shown.actions)
        asked.append(turns)
        env.close()
    assert asked[0] == asked[1]
    assert [a for a, _ in asked[0]] == [a for a, _ in asked[2]]
    assert all(q == () for _, q in asked[2])


@pytest.mark.parametrize("questions", [-1, 1.5, True, "3"])
def test_the_number_of_questions_is_checked(questions: object) -> None:
    with pytest.raises(ConfigErrors, match="questions="):
        Household(questions=questions)  # type: ignore[arg-type]


def test_things_that_look_alike_are_asked_about_once() -> None:
    env = Household(observation="text", questions=8)
    for seed in range(5):
        env.reset(seed=seed)
        question, _ = env.expert(max_actions=5)().questions[0]
        names = question.removeprefix("locate ").split(" , ")
        assert len(names) == len(set(names)) <= 8
    env.close()


def test_blank_images_hide_everything_and_nothing_else() -> None:
    seen = []
    for blank in (False, True):
        env = Household(blank_images=blank, camera_size=(56, 28))
        observation, info = env.reset(seed=2)
        seen.append((observation, info))
        env.close()
    (shown, info), (hidden, same) = seen
    assert (hidden["images"] == 127).all() and shown["images"].std() > 1.0
    assert hidden["images"].shape == shown["images"].shape
    assert (hidden["text"], same) == (shown["text"], info)
    with pytest.raises(ConfigErrors, match="blank_images"):
        Household(blank_images="yes")  # type: ignore[arg-type]
