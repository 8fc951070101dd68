"""Tasks drawn from houses, and their words."""

import string

import numpy as np
import pytest

from rllib_vlm.sims.household.houses import generate_house
from rllib_vlm.sims.household.instructions import TEMPLATES
from rllib_vlm.sims.household.tasks import (
    GRASPING,
    TASKS,
    TaskName,
    draw_task,
    item_words,
    named_receptacles,
    receptacle_of,
    room_type,
)


def fields(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def test_every_task_has_many_phrasings_with_all_it_needs() -> None:
    needs = {
        "Fetch": {"item", "place"}, "PickUp": {"item", "place"}, "ObjectNav": {"item"}, "RoomNav": {"room"},
        "RoomVisit": {"count"},
    }  # fmt: skip
    assert set(TEMPLATES) == set(TASKS)
    for task, templates in TEMPLATES.items():
        assert len(set(templates)) >= 8
        assert all(fields(t) == needs[task] for t in templates)


@pytest.mark.parametrize("name", TASKS)
def test_targets_are_exactly_what_the_words_fit(name: TaskName) -> None:
    instructions = set()
    for seed in range(12):
        house = generate_house(seed, "train", rooms=(2, 3))
        task = draw_task(house, name, np.random.default_rng(seed), reachable=lambda item: True)
        assert task is not None
        instructions.add(task.instruction)
        for item in house.items:
            piece = receptacle_of(house, item)
            fits = item_words(item) == task.thing
            if name in GRASPING:
                fits = fits and piece.type == task.receptacle and room_type(house, piece.room) == task.room
                assert piece.id in named_receptacles(house, task) or not fits
            assert (item.id in task.targets) == (fits and bool(task.thing)), item
        for words in (task.thing, task.receptacle):
            assert words in task.instruction
        if name == "RoomVisit":
            assert str(len(house.rooms)) in task.instruction
    assert len(instructions) >= (3 if name == "RoomVisit" else 8)


def test_grasping_tasks_ask_only_for_what_can_be_taken() -> None:
    house = generate_house(3, "train")
    allowed = {i.id for i in house.items if i.pickupable}
    for seed in range(30):
        task = draw_task(house, "Fetch", np.random.default_rng(seed), reachable=lambda item: True)
        assert task is not None
        assert set(task.targets) <= allowed


def test_no_task_where_nothing_is_reachable() -> None:
    house = generate_house(3, "train")
    assert draw_task(house, "Fetch", np.random.default_rng(0), reachable=lambda item: False) is None
