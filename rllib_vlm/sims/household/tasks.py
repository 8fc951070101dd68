"""SPOC's tasks: what is asked for, when it is done, and drawing one from a house.

Source of the success rules and step limits: allenai/spoc-robot-training, tasks/*.py and
online_evaluation/max_episode_configs.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from rllib_vlm.sims.household.instructions import instruct, place
from rllib_vlm.sims.household.world import Furniture, House, Item

TaskName = Literal["ObjectNav", "PickUp", "Fetch", "RoomNav", "RoomVisit"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)
MAX_STEPS: dict[TaskName, int] = {
    "ObjectNav": 600, "PickUp": 600, "Fetch": 600, "RoomNav": 600, "RoomVisit": 1000,
}  # fmt: skip
GRASPING: frozenset[TaskName] = frozenset({"PickUp", "Fetch"})
OBJECT_NAV_M = 2.0  # ObjectNav: a target visible in the navigation camera within this distance
OBJECT_NAV_PIXELS = 12.0  # ... and covering at least this much of the picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task in one house. `targets` are all the items that fit the instruction: any of them counts."""

    name: TaskName
    instruction: str
    targets: tuple[str, ...] = ()
    thing: str = ""  # the target in words, "red mug"
    receptacle: str = ""  # the named receptacle's type, "" where the instruction names none
    room: str = ""  # the named room's type, "" where the instruction names none
    rooms_in_house: int = 1


def item_words(item: Item) -> str:
    """An item in words: colour and type."""
    return f"{item.color} {item.type}"


def receptacle_of(house: House, item: Item) -> Furniture:
    """The piece of furniture an item stood on when the house was built."""
    return next(f for f in house.furniture if f.id == item.receptacle)


def room_type(house: House, room_id: str) -> str:
    """The type of the room with this id."""
    return next(r.type for r in house.rooms if r.id == room_id)


def draw_task(
    house: House, name: TaskName, rng: np.random.Generator, *, reachable: Callable[[Item], bool]
) -> Task | None:
    """A task of this name in this house, or None where the house allows none.

    `reachable` says whether an item can be taken (grasping tasks) or come close to (ObjectNav).
    """
    rooms = len(house.rooms)
    if name == "RoomVisit":
        words = instruct(name, rng, count=str(rooms))
        return Task(name=name, instruction=words, rooms_in_house=rooms)
    if name == "RoomNav":
        room = house.rooms[int(rng.integers(rooms))]
        words = instruct(name, rng, room=room.type)
        return Task(name=name, instruction=words, room=room.type, rooms_in_house=rooms)
    return _item_task(house, name, rng, reachable)


def _item_task(
    house: House, name: TaskName, rng: np.random.Generator, reachable: Callable[[Item], bool]
) -> Task | None:
    grasping = name in GRASPING
    for k in rng.permutation(len(house.items)):
        item = house.items[int(k)]
        if grasping and not item.pickupable:
            continue
        targets = matching_items(house, item, same_place=grasping)
        if not all(reachable(t) for t in targets):
            continue
        thing = item_words(item)
        ids = tuple(t.id for t in targets)
        if not grasping:
            words = instruct(name, rng, item=thing)
            return Task(
                name=name, instruction=words, targets=ids, thing=thing, rooms_in_house=len(house.rooms)
            )
        piece = receptacle_of(house, item)
        room = room_type(house, piece.room)
        words = instruct(name, rng, item=thing, place=place(piece.type, room, rng))
        return Task(
            name=name, instruction=words, targets=ids, thing=thing, receptacle=piece.type, room=room,
            rooms_in_house=len(house.rooms),
        )  # fmt: skip
    return None


def matching_items(house: House, item: Item, *, same_place: bool) -> tuple[Item, ...]:
    """All items that the words for `item` fit; `same_place`: the words name its receptacle and room."""

    def words(other: Item) -> tuple[str, ...]:
        base = (other.color, other.type)
        if not same_place:
            return base
        piece = receptacle_of(house, other)
        return (*base, piece.type, room_type(house, piece.room))

    return tuple(i for i in house.items if words(i) == words(item))


def named_receptacles(house: House, task: Task) -> tuple[str, ...]:
    """The furniture pieces that the instruction's receptacle and room fit."""
    return tuple(
        f.id for f in house.furniture
        if task.receptacle and f.type == task.receptacle and room_type(house, f.room) == task.room
    )  # fmt: skip
