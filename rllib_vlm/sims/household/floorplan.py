"""Floor plans: rooms that tile a rectangle, the doors between them, walls, and where a robot fits.

Rectangles are (x0, y0, x1, y1) in metres. Rooms touch one another; each room's walls are slabs
inside its own rectangle, so a shared wall has one face per room.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rllib_vlm.sims.household.catalogue import ROOMS
from rllib_vlm.sims.household.world import Door, Furniture, House, Room, Split

Point = tuple[float, float]
Rect = tuple[float, float, float, float]

WALL_THICKNESS = 0.06  # of one room's slab
MIN_SIDE, MAX_SIDE = 2.8, 6.0  # of a room
DOOR_WIDTHS = (0.95, 1.15)
DOOR_MARGIN = 0.2  # from a door to the nearest corner


def plan_rooms(rng: np.random.Generator, count: int, split: Split) -> tuple[Room, ...] | None:
    """`count` rooms of different types tiling a rectangle, or None where the draws do not fit.

    The width of the rectangle is an even number of centimetres in training houses and an odd one
    in held-out houses: no house can belong to both splits.
    """
    for _ in range(100):
        rects = _draw_rects(rng, count, split)
        if all(MIN_SIDE <= side <= MAX_SIDE for r in rects for side in (r[2] - r[0], r[3] - r[1])):
            break
    else:
        return None
    types = list(rng.permutation(sorted(ROOMS)))
    return tuple(
        Room(id=f"{kind.replace(' ', '_')}_{i}", type=str(kind), x0=r[0], y0=r[1], x1=r[2], y1=r[3])
        for i, (kind, r) in enumerate(zip(types, rects, strict=False))
    )


def _draw_rects(rng: np.random.Generator, count: int, split: Split) -> list[Rect]:
    """Rectangles of rooms of about 15 square metres; those of a draw may be too narrow."""
    low, high = (1.0, 1.25) if count in (1, 4, 6) else (1.15, 2.0)
    aspect = float(rng.uniform(low, high))
    if rng.random() < 0.5:
        aspect = 1.0 / aspect
    area = count * float(rng.uniform(13.0, 17.0))
    width_cm = 2 * round(50.0 * math.sqrt(area * aspect)) + (split == "heldout")
    height = round(math.sqrt(area / aspect), 2)
    return _split(rng, (0.0, 0.0, width_cm / 100.0, height), count)


def _split(rng: np.random.Generator, rect: Rect, count: int) -> list[Rect]:
    if count == 1:
        return [rect]
    x0, y0, x1, y1 = rect
    first = count // 2 if count % 2 == 0 or rng.random() < 0.5 else count - count // 2
    share = first / count + float(rng.uniform(-0.08, 0.08))
    if x1 - x0 >= y1 - y0:
        cut = round(x0 + share * (x1 - x0), 2)
        parts: tuple[Rect, Rect] = ((x0, y0, cut, y1), (cut, y0, x1, y1))
    else:
        cut = round(y0 + share * (y1 - y0), 2)
        parts = ((x0, y0, x1, cut), (x0, cut, x1, y1))
    return _split(rng, parts[0], first) + _split(rng, parts[1], count - first)


def plan_doors(rng: np.random.Generator, rooms: tuple[Room, ...]) -> tuple[Door, ...] | None:
    """A spanning tree of doors and, now and then, one more; None where rooms stay unconnected."""
    candidates = []
    for i, a in enumerate(rooms):
        for b in rooms[i + 1 :]:
            if (door := _door_between(rng, a, b)) is not None:
                candidates.append(door)
    group = {r.id: r.id for r in rooms}
    doors: list[Door] = []
    for k in rng.permutation(len(candidates)):
        door = candidates[int(k)]
        kept, joined = (group[r] for r in door.rooms)
        if kept == joined and rng.random() > 0.35:
            continue
        group = {r: (kept if g == joined else g) for r, g in group.items()}
        doors.append(door)
    return tuple(doors) if len(set(group.values())) == 1 else None


def _door_between(rng: np.random.Generator, a: Room, b: Room) -> Door | None:
    width = round(float(rng.uniform(*DOOR_WIDTHS)), 2)
    name = f"door_{a.id}_{b.id}"
    inset = WALL_THICKNESS + DOOR_MARGIN + width / 2
    for left, right in ((a, b), (b, a)):
        if left.x1 == right.x0:
            lo, hi = max(a.y0, b.y0) + inset, min(a.y1, b.y1) - inset
            if lo <= hi:
                return Door(name, (a.id, b.id), left.x1, round(float(rng.uniform(lo, hi)), 2), width, "x")
        if left.y1 == right.y0:
            lo, hi = max(a.x0, b.x0) + inset, min(a.x1, b.x1) - inset
            if lo <= hi:
                return Door(name, (a.id, b.id), round(float(rng.uniform(lo, hi)), 2), left.y1, width, "y")
    return None


def room_walls(room: Room, doors: Iterable[Door]) -> list[Rect]:
    """The slabs of one room's walls, with the door openings left out."""
    t = WALL_THICKNESS
    gaps: dict[str, list[tuple[float, float]]] = {"x0": [], "x1": [], "y0": [], "y1": []}
    for door in doors:
        if room.id not in door.rooms:
            continue
        along = door.y if door.axis == "x" else door.x
        at = door.x if door.axis == "x" else door.y
        near = room.x0 if door.axis == "x" else room.y0
        side = f"{door.axis}{0 if abs(at - near) < 1e-9 else 1}"
        gaps[side].append((along - door.width / 2, along + door.width / 2))
    slabs: list[Rect] = []
    for lo, hi in _cut(room.y0, room.y1, gaps["x0"]):
        slabs.append((room.x0, lo, room.x0 + t, hi))
    for lo, hi in _cut(room.y0, room.y1, gaps["x1"]):
        slabs.append((room.x1 - t, lo, room.x1, hi))
    for lo, hi in _cut(room.x0, room.x1, gaps["y0"]):
        slabs.append((lo, room.y0, hi, room.y0 + t))
    for lo, hi in _cut(room.x0, room.x1, gaps["y1"]):
        slabs.append((lo, room.y1 - t, hi, room.y1))
    return slabs


def _cut(lo: float, hi: float, gaps: list[tuple[float, float]]) -> list[tuple[float, float]]:
    pieces = []
    for start, end in sorted(gaps):
        pieces.append((lo, start))
        lo = end
    return [*pieces, (lo, hi)]


def footprint(piece: Furniture) -> Rect:
    """The rectangle a furniture piece covers (its yaw is a multiple of 90 degrees)."""
    turned = round(piece.yaw / 90.0) % 2 == 1
    w, d = (piece.depth, piece.width) if turned else (piece.width, piece.depth)
    return (piece.x - w / 2, piece.y - d / 2, piece.x + w / 2, piece.y + d / 2)


@dataclass(slots=True)
class Clearance:
    """Distance from each grid point to the nearest obstacle, capped at `LIMIT`.

    Point [i, j] lies at (x0 + i * step, y0 + j * step).
    """

    x0: float
    y0: float
    step: float
    values: NDArray[np.float32]  # [nx, ny] metres

    LIMIT = 1.0

    @classmethod
    def empty(cls, rect: Rect, step: float = 0.05) -> Clearance:
        shape = (round((rect[2] - rect[0]) / step) + 1, round((rect[3] - rect[1]) / step) + 1)
        return cls(rect[0], rect[1], step, np.full(shape, cls.LIMIT, np.float32))

    @classmethod
    def of(cls, house: House, step: float = 0.05) -> Clearance:
        """The clearance of a whole house: walls and furniture, without loose items."""
        rooms = house.rooms
        rect = (min(r.x0 for r in rooms), min(r.y0 for r in rooms),
                max(r.x1 for r in rooms), max(r.y1 for r in rooms))  # fmt: skip
        grid = cls.empty(rect, step)
        for room in rooms:
            for slab in room_walls(room, house.doors):
                grid.add(slab)
        for piece in house.furniture:
            grid.add(footprint(piece))
        return grid

    def copy(self) -> Clearance:
        return Clearance(self.x0, self.y0, self.step, self.values.copy())

    def add(self, rect: Rect) -> None:
        """Takes in one more obstacle."""
        reach = self.LIMIT
        i0, j0 = self.index(rect[0] - reach, rect[1] - reach)
        i1, j1 = self.index(rect[2] + reach, rect[3] + reach)
        x = self.x0 + self.step * np.arange(i0, i1 + 1, dtype=np.float32)
        y = self.y0 + self.step * np.arange(j0, j1 + 1, dtype=np.float32)
        dx = np.maximum(np.maximum(rect[0] - x, x - rect[2]), 0.0)[:, None]
        dy = np.maximum(np.maximum(rect[1] - y, y - rect[3]), 0.0)[None, :]
        window = self.values[i0 : i1 + 1, j0 : j1 + 1]
        np.minimum(window, np.sqrt(dx * dx + dy * dy), out=window)

    def index(self, x: float, y: float) -> tuple[int, int]:
        """The grid point nearest to (x, y), inside the grid."""
        nx, ny = self.values.shape
        i, j = round((x - self.x0) / self.step), round((y - self.y0) / self.step)
        return min(max(i, 0), nx - 1), min(max(j, 0), ny - 1)

    def at(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float32]:
        """The values at the grid points nearest to points of any shape, inside the grid."""
        nx, ny = self.values.shape
        i = np.rint((x - self.x0) / self.step).astype(np.int64)
        j = np.rint((y - self.y0) / self.step).astype(np.int64)
        # Unlike clip, these cost a small array no look at the limits of its type.
        i = np.minimum(np.maximum(i, 0), nx - 1)
        j = np.minimum(np.maximum(j, 0), ny - 1)
        return np.asarray(self.values[i, j])

    def least_between(self, starts: Sequence[Point], ends: Sequence[Point]) -> NDArray[np.float64]:
        """[N] the least value on each of these straight lines, looked up a step apart and at both ends."""
        counts = np.array(
            [max(2, math.ceil(math.dist(a, b) / self.step) + 1) for a, b in zip(starts, ends, strict=True)]
        )
        last = np.cumsum(counts) - 1
        first = last + 1 - counts
        place = np.arange(last[-1] + 1) - np.repeat(first, counts)
        a, b = np.asarray(starts, np.float64), np.asarray(ends, np.float64)
        steps = (b - a) / (counts - 1)[:, None]
        along = place[:, None] * np.repeat(steps, counts, 0) + np.repeat(a, counts, 0)
        along[last] = b
        return np.minimum.reduceat(self.at(along[:, 0], along[:, 1]), first).astype(np.float64)

    def components(self, radius: float) -> NDArray[np.int32]:
        """[nx, ny] number of the connected free region a disc of this radius may move in; 0: blocked."""
        labels, _ = ndimage.label(self.values >= radius)
        return np.asarray(labels, np.int32)
