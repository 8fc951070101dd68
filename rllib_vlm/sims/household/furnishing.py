"""Where furniture and objects stand, so that a robot can get to all of them.

Furniture is placed piece by piece, and a piece that would cut a room in two, block a door or hide
a receptacle from a robot is taken back. Every object is placed so that a robot standing beside its
receptacle can reach it with a straight arm that meets no other object.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rllib_vlm.sims.household.catalogue import FURNITURE, FURNITURE_COLORS, ITEM_COLORS, ITEMS, ROOMS
from rllib_vlm.sims.household.floorplan import WALL_THICKNESS, Clearance, Rect, footprint, room_walls
from rllib_vlm.sims.household.world import Door, Furniture, Item, Room

ROBOT_RADIUS = 0.25  # m, the disc that must get everywhere
STAND_OFF = 0.3  # from a receptacle's edge to the robot's centre when it grasps
MAX_DEPTH = 0.32  # from that edge to an object's centre
_DOOR_ZONE = 0.75  # kept free on both sides of a door
_ITEM_GAP = 0.05  # between objects
_ARM_HALF_WIDTH = 0.08  # of the corridor the arm needs


def furnish(
    rng: np.random.Generator, rooms: Sequence[Room], doors: Sequence[Door], count: int, items: int
) -> tuple[Furniture, ...] | None:
    """`count` pieces, at least one receptacle in every room and enough for `items`; None: no fit."""
    share = _share(rng, rooms, count)
    crowded = items > 1.3 * count  # then receptacles go first
    pieces: list[Furniture] = []
    for room, wanted in zip(rooms, share, strict=True):
        kind = ROOMS[room.type]
        pool = [str(t) for t in rng.permutation(kind.optional)]
        if crowded:
            pool.sort(key=lambda t: not FURNITURE[t].receptacle)
        types = [str(rng.choice(kind.essential)), *(pool * 2)]
        builder = _RoomBuilder(rng, room, doors)
        for type_ in types:
            if len(builder.pieces) == wanted:
                break
            if sum(p.type == type_ for p in builder.pieces) < 2:
                builder.try_place(type_, f"{type_.replace(' ', '_')}_{len(pieces) + len(builder.pieces)}")
        if len(builder.pieces) < wanted or not any(p.receptacle for p in builder.pieces):
            return None
        pieces.extend(builder.pieces)
    return tuple(pieces)


def _share(rng: np.random.Generator, rooms: Sequence[Room], count: int) -> NDArray[np.int64]:
    """How many pieces each room gets: by its area, at least one."""
    area = np.array([(r.x1 - r.x0) * (r.y1 - r.y0) for r in rooms])
    extra = rng.multinomial(max(count - len(rooms), 0), area / area.sum())
    share = np.ones(len(rooms), np.int64) + extra
    while share.max() > 5 and share.max() - share.min() > 1:
        share[share.argmax()] -= 1
        share[share.argmin()] += 1
    return share


class _RoomBuilder:
    """Adds furniture to one room and keeps it passable."""

    def __init__(self, rng: np.random.Generator, room: Room, doors: Sequence[Door]) -> None:
        self.rng, self.room = rng, room
        self.pieces: list[Furniture] = []
        t = WALL_THICKNESS
        self.inner: Rect = (room.x0 + t, room.y0 + t, room.x1 - t, room.y1 - t)
        self.doors = [d for d in doors if room.id in d.rooms]
        self.zones = [_door_zone(d) for d in self.doors]
        self.grid = Clearance.empty((room.x0, room.y0, room.x1, room.y1))
        for slab in room_walls(room, doors):
            self.grid.add(slab)

    def try_place(self, type_: str, name: str) -> bool:
        for _ in range(20):
            piece = self._draw(type_, name)
            if piece is None or not self._fits(footprint(piece)):
                continue
            grid = self.grid.copy()
            grid.add(footprint(piece))
            if self._passable(grid, piece):
                self.grid = grid
                self.pieces.append(piece)
                return True
        return False

    def _draw(self, type_: str, name: str) -> Furniture | None:
        rng, kind = self.rng, FURNITURE[type_]
        w, d, h = (round(float(rng.uniform(*r)), 3) for r in (kind.width, kind.depth, kind.height))
        yaw = float(rng.choice([0.0, 90.0, 180.0, -90.0]))
        half_x, half_y = (d / 2, w / 2) if yaw in (90.0, -90.0) else (w / 2, d / 2)
        x0, x1 = self.inner[0] + half_x, self.inner[2] - half_x
        y0, y1 = self.inner[1] + half_y, self.inner[3] - half_y
        if x0 >= x1 or y0 >= y1:
            return None
        x, y = float(rng.uniform(x0, x1)), float(rng.uniform(y0, y1))
        if kind.wall:  # its back (its own +y side) against the wall it turns to
            gap = 0.01
            x = {90.0: x0 + gap, -90.0: x1 - gap}.get(yaw, x)
            y = {0.0: y1 - gap, 180.0: y0 + gap}.get(yaw, y)
        color = str(rng.choice(sorted(FURNITURE_COLORS)))
        return Furniture(
            name, type_, self.room.id, round(x, 3), round(y, 3), yaw, w, d, h, color, kind.receptacle
        )

    def _fits(self, rect: Rect) -> bool:
        taken = [*self.zones, *(_grown(footprint(p), 0.05) for p in self.pieces)]
        return not any(_overlap(rect, other) for other in taken)

    def _passable(self, grid: Clearance, new: Furniture) -> bool:
        """All doors and one long side of every receptacle are in one free region, and little else is cut off."""
        labels = grid.components(ROBOT_RADIUS)
        sizes = np.bincount(labels.ravel())
        if len(sizes) < 2:
            return False
        sizes[0] = 0
        main = int(sizes.argmax())
        if sizes.sum() - sizes[main] > 40:  # grid points: 0.1 square metres
            return False
        for door in self.doors:
            if labels[grid.index(*_inside(door, self.room))] != main:
                return False
        reachable = labels == main
        receptacles = [p for p in (*self.pieces, new) if p.receptacle]
        return all(any(s.length > 0.3 for s in open_sides(p, grid, reachable)) for p in receptacles)


def _inside(door: Door, room: Room) -> tuple[float, float]:
    """A point just inside `room` behind its door."""
    step = 0.3
    if door.axis == "x":
        return (door.x + (step if abs(door.x - room.x0) < 1e-9 else -step), door.y)
    return (door.x, door.y + (step if abs(door.y - room.y0) < 1e-9 else -step))


def _door_zone(door: Door) -> Rect:
    half, reach = door.width / 2 + 0.1, _DOOR_ZONE
    if door.axis == "x":
        return (door.x - reach, door.y - half, door.x + reach, door.y + half)
    return (door.x - half, door.y - reach, door.x + half, door.y + reach)


def _grown(r: Rect, by: float) -> Rect:
    return (r[0] - by, r[1] - by, r[2] + by, r[3] + by)


def _overlap(a: Rect, b: Rect) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@dataclass(frozen=True, slots=True)
class Side:
    """A stretch of a receptacle's edge beside which a robot can stand."""

    start: tuple[float, float]  # one end, on the edge
    along: tuple[float, float]  # unit vector along the edge
    inward: tuple[float, float]  # unit vector into the receptacle
    length: float
    depth: float  # of the receptacle behind this edge


def open_sides(piece: Furniture, grid: Clearance, reachable: NDArray[np.bool_]) -> list[Side]:
    """The longest reachable stretch of each of a receptacle's four edges, where there is one."""
    x0, y0, x1, y1 = footprint(piece)
    edges = [
        ((x0, y0), (1.0, 0.0), (0.0, 1.0), x1 - x0, y1 - y0),
        ((x0, y1), (1.0, 0.0), (0.0, -1.0), x1 - x0, y1 - y0),
        ((x0, y0), (0.0, 1.0), (1.0, 0.0), y1 - y0, x1 - x0),
        ((x1, y0), (0.0, 1.0), (-1.0, 0.0), y1 - y0, x1 - x0),
    ]
    sides = []
    for (ex, ey), along, inward, length, depth in edges:
        steps = np.arange(0.0, length + 1e-9, 0.05)
        px = ex + along[0] * steps - inward[0] * STAND_OFF
        py = ey + along[1] * steps - inward[1] * STAND_OFF
        i = np.rint((px - grid.x0) / grid.step).astype(np.int64)
        j = np.rint((py - grid.y0) / grid.step).astype(np.int64)
        nx, ny = reachable.shape
        inside = (i >= 0) & (i < nx) & (j >= 0) & (j < ny)
        free = (inside & reachable[np.where(inside, i, 0), np.where(inside, j, 0)]).tolist()
        first, last = _longest_run(free)
        if last > first:
            start = (ex + along[0] * steps[first], ey + along[1] * steps[first])
            sides.append(Side(start, along, inward, float(steps[last] - steps[first]), depth))
    return sides


def _longest_run(flags: list[bool]) -> tuple[int, int]:
    best, start = (0, 0), -1
    for k, flag in enumerate([*flags, False]):
        if flag and start < 0:
            start = k
        elif not flag and start >= 0:
            if k - 1 - start > best[1] - best[0]:
                best = (start, k - 1)
            start = -1
    return best


def draw_names(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """`count` different (type, colour) pairs in which types and colours repeat.

    The first three share a type and a colour: (a, red), (a, blue), (b, red). At most an eighth are
    too heavy to pick up.
    """
    types = [str(t) for t in rng.permutation([t for t, k in ITEMS.items() if k.pickupable])]
    heavy = [str(t) for t in rng.permutation([t for t, k in ITEMS.items() if not k.pickupable])]
    colors = [str(c) for c in rng.permutation(sorted(ITEM_COLORS))]
    pool_types = types[: max(3, round(count * 0.6))]
    pool_colors = colors[: max(3, min(len(colors), round(count * 0.5)))]
    names = [(pool_types[0], colors[0]), (pool_types[0], colors[1]), (pool_types[1], colors[0])][:count]
    while len(names) < count:
        heavies = sum(not ITEMS[t].pickupable for t, _ in names)
        pool = heavy if heavies < count // 8 and rng.random() < 0.15 else pool_types
        name = (str(rng.choice(pool)), str(rng.choice(pool_colors if rng.random() < 0.8 else colors)))
        if name not in names:
            names.append(name)
    return names


def place_items(
    rng: np.random.Generator, furniture: Sequence[Furniture], grid: Clearance, count: int
) -> tuple[Item, ...] | None:
    """`count` objects on receptacles, spread over them; None where they do not fit."""
    labels = grid.components(ROBOT_RADIUS)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    reachable = labels == int(sizes.argmax())
    sides = {
        p.id: [s for s in open_sides(p, grid, reachable) if s.length > 0.15]
        for p in furniture
        if p.receptacle
    }
    receptacles = [p for p in furniture if sides.get(p.id)]
    placed: list[_Placed] = []
    for type_, color in draw_names(rng, count):
        load = np.array([sum(q.item.receptacle == p.id for q in placed) for p in receptacles])
        order = rng.permutation(len(receptacles))
        order = order[np.argsort(load[order] + rng.integers(0, 2, len(order)), kind="stable")]
        for k in order:
            found = _place_on(rng, receptacles[int(k)], sides[receptacles[int(k)].id], type_, color, placed)
            if found is not None:
                placed.append(found)
                break
        else:
            return None
    return tuple(p.item for p in placed)


@dataclass(frozen=True, slots=True)
class _Placed:
    item: Item
    radius: float  # of the circle around it
    side: Side


def _place_on(
    rng: np.random.Generator,
    piece: Furniture,
    sides: list[Side],
    type_: str,
    color: str,
    placed: list[_Placed],
) -> _Placed | None:
    kind = ITEMS[type_]
    for _ in range(12):
        scale = float(rng.uniform(0.93, 1.07))
        w, d, h = (round(s * scale, 4) for s in kind.size)
        radius = math.hypot(w, d) / 2 if not kind.round else w / 2
        side = sides[int(rng.integers(len(sides)))]
        near, far = radius + 0.02, min(MAX_DEPTH, side.depth - radius - 0.02)
        if far < near or side.length < 0.1:
            continue
        s, into = float(rng.uniform(0.0, side.length)), float(rng.uniform(near, far))
        x = side.start[0] + side.along[0] * s + side.inward[0] * into
        y = side.start[1] + side.along[1] * s + side.inward[1] * into
        yaw = round(float(rng.uniform(-180.0, 180.0)), 1)
        name = f"{color}_{type_.replace(' ', '_')}"
        x, y, z = round(float(x), 4), round(float(y), 4), round(piece.height + h / 2, 4)
        item = Item(name, type_, color, piece.id, x, y, z, yaw, (w, d, h), kind.pickupable)
        new = _Placed(item, radius, side)
        x0, y0, x1, y1 = _grown(footprint(piece), -radius - 0.01)
        inside = x0 <= x <= x1 and y0 <= y <= y1
        others = [p for p in placed if p.item.receptacle == piece.id]
        if inside and all(_apart(new, o) and _apart(o, new) for o in others):
            return new
    return None


def _apart(a: _Placed, b: _Placed) -> bool:
    """Whether b touches neither a nor the arm's way to a."""
    dx, dy = b.item.x - a.item.x, b.item.y - a.item.y
    if math.hypot(dx, dy) < a.radius + b.radius + _ITEM_GAP:
        return False
    outward = -(dx * a.side.inward[0] + dy * a.side.inward[1])
    across = abs(dx * a.side.along[0] + dy * a.side.along[1])
    return outward < 0.0 or across > b.radius + _ARM_HALF_WIDTH
