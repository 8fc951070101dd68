"""Procedural houses: the same seed and split always give the same house."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import numpy as np

from rllib_vlm.errors import SimulatorError
from rllib_vlm.sims.household.catalogue import LIMITS
from rllib_vlm.sims.household.floorplan import Clearance, plan_doors, plan_rooms
from rllib_vlm.sims.household.furnishing import furnish, place_items
from rllib_vlm.sims.household.place import Place
from rllib_vlm.sims.household.world import House, Split

_SPLIT_KEYS: dict[Split, int] = {"train": 1, "heldout": 2}
_ATTEMPTS = 200


def generate_house(
    seed: int,
    split: Split,
    *,
    rooms: tuple[int, int] = (2, 4),
    furniture: tuple[int, int] = (7, 11),
    items: tuple[int, int] = (10, 14),
) -> House:
    """A house drawn from `seed`, always the same one for the same arguments.

    Training and held-out houses never coincide: their random streams differ, and the footprint is
    an even number of centimetres wide in the one split and an odd number in the other.

    Args:
        seed: at least 0.
        split: "train" or "heldout".
        rooms: least and greatest number of rooms, 1 to 6. Room types are all different.
        furniture: least and greatest number of pieces in the house, at least one per room.
        items: least and greatest number of loose objects. No two share both type and colour; with
            three or more, some share the type and some the colour.

    Raises:
        SimulatorError: the numbers ask for more than fits into a house.
    """
    _check(seed, split, rooms, furniture, items)
    rng = np.random.default_rng(np.random.SeedSequence([_SPLIT_KEYS[split], seed]))
    # The numbers are drawn once, so that the ones that are hard to fit are not drawn less often.
    room_count, item_count = (int(rng.integers(low, high + 1)) for low, high in (rooms, items))
    least = max(furniture[0], room_count)
    piece_count = int(rng.integers(least, max(least, furniture[1]) + 1))
    for _ in range(_ATTEMPTS):
        house = _attempt(rng, seed, split, room_count, piece_count, item_count)
        if house is not None:
            return house
    raise SimulatorError(
        f"no house with rooms={rooms}, furniture={furniture}, items={items} found for seed {seed} in "
        f"{_ATTEMPTS} attempts: ask for fewer pieces of furniture or items per room."
    )


def _attempt(
    rng: np.random.Generator, seed: int, split: Split, rooms: int, furniture: int, items: int
) -> House | None:
    plan = plan_rooms(rng, rooms, split)
    if plan is None:
        return None
    doors = plan_doors(rng, plan)
    if doors is None:
        return None
    pieces = furnish(rng, plan, doors, furniture, items)
    if pieces is None:
        return None
    bare = House(seed, split, plan, doors, pieces, ())
    loose = place_items(rng, pieces, Clearance.of(bare), items)
    if loose is None:
        return None
    house = House(seed, split, plan, doors, pieces, loose)
    # Rooms are furnished one by one, so a passage between two pieces may still be too narrow for the
    # planner's coarser grid. Such a house is given up; the stream of draws goes on with another.
    return None if Place(house).cut_off() else house


def house_hash(house: House) -> str:
    """A digest of the layout (rooms, doors, furniture and items, not the seed or the split)."""
    layout = {k: v for k, v in asdict(house).items() if k not in ("seed", "split")}
    return hashlib.sha256(json.dumps(layout, sort_keys=True).encode()).hexdigest()


def _check(
    seed: int, split: str, rooms: tuple[int, int], furniture: tuple[int, int], items: tuple[int, int]
) -> None:
    if split not in _SPLIT_KEYS:
        raise SimulatorError(f"split is {split!r}, not 'train' or 'heldout'.")
    if seed < 0:
        raise SimulatorError(f"seed is {seed}, but seeds start at 0.")
    for name, (low, high) in (("rooms", rooms), ("furniture", furniture), ("items", items)):
        least, most = LIMITS[name]
        if not least <= low <= high <= most:
            raise SimulatorError(
                f"{name} is ({low}, {high}), but needs two numbers, the smaller one first, from {least} to {most}."
            )
