"""Houses: seeded, split, furnished so that everything is reachable, named without ambiguity."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_vlm.errors import SimulatorError
from rllib_vlm.sims.household.catalogue import FURNITURE, FURNITURE_COLORS, ITEM_COLORS, ITEMS
from rllib_vlm.sims.household.floorplan import Clearance, footprint, room_walls
from rllib_vlm.sims.household.furnishing import MAX_DEPTH, ROBOT_RADIUS, STAND_OFF
from rllib_vlm.sims.household.houses import generate_house, house_hash
from rllib_vlm.sims.household.place import Place
from rllib_vlm.sims.household.world import House, Split

SEEDS = range(25)


@pytest.fixture(scope="module")
def houses() -> list[House]:
    return [generate_house(s, "train") for s in SEEDS]


def test_catalogue_is_large_enough_and_colours_are_far_apart():
    assert len(ITEMS) >= 20 and len(ITEM_COLORS) >= 8
    assert len(FURNITURE) >= 10 and sum(k.receptacle for k in FURNITURE.values()) >= 8
    for palette, least in ((ITEM_COLORS, 0.3), (FURNITURE_COLORS, 0.15)):
        values = [np.array(c) for c in palette.values()]
        nearest = min(np.linalg.norm(a - b) for k, a in enumerate(values) for b in values[k + 1 :])
        assert nearest > least


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["train", "heldout"]))
def test_same_seed_same_house(seed, split):
    assert generate_house(seed, split) == generate_house(seed, split)


def test_seeds_and_splits_give_different_houses(houses):
    heldout = [generate_house(s, "heldout") for s in SEEDS]
    hashes = {house_hash(h) for h in [*houses, *heldout]}
    assert len(hashes) == 2 * len(SEEDS)
    for h in houses:
        assert round(100 * max(r.x1 for r in h.rooms)) % 2 == 0
    for h in heldout:
        assert round(100 * max(r.x1 for r in h.rooms)) % 2 == 1


def test_hash_ignores_the_seed_but_not_the_layout(houses):
    a = houses[0]
    same = House(99, "heldout", a.rooms, a.doors, a.furniture, a.items)
    other = House(a.seed, a.split, a.rooms, a.doors, a.furniture, a.items[1:])
    assert house_hash(a) == house_hash(same) != house_hash(other)


def test_counts(houses):
    for h in houses:
        assert 2 <= len(h.rooms) <= 4 and len(h.furniture) >= 6 and len(h.items) >= 10
        assert len({r.type for r in h.rooms}) == len(h.rooms)
        names = [x.id for x in (*h.rooms, *h.doors, *h.furniture, *h.items)]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("rooms", range(1, 7))
def test_room_numbers(rooms):
    for seed in range(4):
        h = generate_house(
            seed, "train", rooms=(rooms, rooms), furniture=(2 * rooms, 4 * rooms), items=(3, 6)
        )
        assert len(h.rooms) == rooms


def test_names_are_unique_and_share_types_and_colours(houses):
    for h in houses:
        names = [(i.type, i.color) for i in h.items]
        assert len(set(names)) == len(names)
        types, colors = [t for t, _ in names], [c for _, c in names]
        assert any(types.count(t) > 1 and colors.count(c) > 1 for t, c in names)
        assert sum(not i.pickupable for i in h.items) <= len(h.items) // 8


def test_rooms_tile_the_footprint(houses):
    for h in houses:
        area = sum((r.x1 - r.x0) * (r.y1 - r.y0) for r in h.rooms)
        width, depth = max(r.x1 for r in h.rooms), max(r.y1 for r in h.rooms)
        assert area == pytest.approx(width * depth)
        for r in h.rooms:
            assert 2.5 <= r.x1 - r.x0 <= 6.1 and 2.5 <= r.y1 - r.y0 <= 6.1


def test_furniture_stays_inside_its_room_and_off_walls_and_other_pieces(houses):
    def overlap(a, b):
        return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

    for h in houses:
        rooms = {r.id: r for r in h.rooms}
        rects = [footprint(f) for f in h.furniture]
        walls = [w for r in h.rooms for w in room_walls(r, h.doors)]
        for k, (f, rect) in enumerate(zip(h.furniture, rects, strict=True)):
            room = rooms[f.room]
            assert room.x0 <= rect[0] and rect[2] <= room.x1 and room.y0 <= rect[1] and rect[3] <= room.y1
            assert not any(overlap(rect, other) for other in [*walls, *rects[k + 1 :]])


def test_a_robot_gets_through_every_door_and_into_every_room(houses):
    for h in houses:
        grid = Clearance.of(h)
        labels = grid.components(ROBOT_RADIUS)
        main = np.bincount(labels[labels > 0]).argmax()
        for door in h.doors:
            assert door.width >= 0.9
            assert labels[grid.index(door.x, door.y)] == main
        for room in h.rooms:
            (i0, j0), (i1, j1) = grid.index(room.x0, room.y0), grid.index(room.x1, room.y1)
            free = labels[i0 : i1 + 1, j0 : j1 + 1]
            assert (free == main).sum() * grid.step**2 > 2.0
            assert ((free > 0) & (free != main)).sum() * grid.step**2 < 0.2


def test_every_item_stands_on_its_receptacle_apart_from_the_others_and_within_reach(houses):
    for h in houses:
        grid = Clearance.of(h)
        labels = grid.components(ROBOT_RADIUS)
        main = np.bincount(labels[labels > 0]).argmax()
        pieces = {f.id: f for f in h.furniture}
        for k, item in enumerate(h.items):
            piece = pieces[item.receptacle]
            x0, y0, x1, y1 = footprint(piece)
            assert piece.receptacle and 0.3 <= piece.height <= 0.95
            assert x0 < item.x < x1 and y0 < item.y < y1
            assert item.z - item.size[2] / 2 == pytest.approx(piece.height, abs=1e-3)
            for other in h.items[k + 1 :]:
                gap = (
                    math.hypot(item.x - other.x, item.y - other.y)
                    - (min(item.size[:2]) + min(other.size[:2])) / 2
                )
                assert gap > 0.03
            stands = [(item.x, y) for y in (y0 - STAND_OFF, y1 + STAND_OFF)]
            stands += [(x, item.y) for x in (x0 - STAND_OFF, x1 + STAND_OFF)]
            reach = [p for p in stands if math.dist(p, (item.x, item.y)) <= STAND_OFF + MAX_DEPTH + 0.01]
            near = [grid.index(*p) for p in reach]
            assert any((labels[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2] == main).any() for i, j in near)


def test_clearance_is_the_distance_to_the_nearest_obstacle():
    grid = Clearance.empty((0.0, 0.0, 2.0, 1.0))
    grid.add((1.5, 0.0, 2.0, 1.0))
    assert grid.values[grid.index(1.0, 0.5)] == pytest.approx(0.5, abs=1e-6)
    assert grid.values[grid.index(1.7, 0.5)] == 0.0
    assert grid.values[grid.index(0.2, 0.5)] == grid.LIMIT


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "test"}, "'train' or 'heldout'"),
        ({"seed": -1}, "seeds start at 0"),
        ({"rooms": (3, 2)}, r"rooms is \(3, 2\)"),
        ({"rooms": (1, 9)}, "from 1 to 6"),
        ({"rooms": (1, 1), "furniture": (2, 2), "items": (60, 60)}, "ask for fewer"),
    ],
)
def test_impossible_wishes_say_what_is_wrong(arguments, words):
    with pytest.raises(SimulatorError, match=words):
        generate_house(**{"seed": 0, "split": "train", **arguments})


def test_what_can_be_taken_stands_where_the_robot_gets_to():
    """Among them are the houses in which a passage between two rooms' furniture was once too narrow."""
    once_bad: dict[Split, tuple[int, ...]] = {"train": (52, 77), "heldout": (1, 40, 47)}
    for split, seed in ((split, seed) for split, seeds in once_bad.items() for seed in seeds):
        place = Place(generate_house(seed, split, rooms=(2, 3)))
        assert not place.cut_off()
        assert all(place.standing(i).any() for i in place.house.items if i.pickupable), (seed, split)


def test_items_behind_a_closed_door_are_cut_off():
    house = generate_house(0, "train", rooms=(2, 2))
    place = Place(replace(house, doors=()))
    rooms = {house.room_at(i.x, i.y) for i in place.cut_off()}
    assert len(rooms) == 1
    (room,) = rooms
    assert {i.id for i in place.cut_off()} == {
        i.id for i in house.items if i.pickupable and house.room_at(i.x, i.y) == room
    }
    assert not Place(house).cut_off()
