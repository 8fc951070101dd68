"""Ways through a house: where the robot fits, how far things are, and which actions lead there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from rllib_vlm.sims.household.floorplan import Clearance, Point, footprint, room_walls
from rllib_vlm.sims.household.world import House, Room

MOVE_M, TURN_DEG, SMALL_TURN_DEG = 0.2, 30.0, 6.0  # SPOC's step sizes
Cell = tuple[int, int]
HEADING_DEG = 9.0  # smaller heading errors are not worth a turn: the next turn mends them
_NEARER_M = 0.03  # less than the grid's step: beside a wall, its clearance trembles by about as much
SIGHT_HEIGHT_M = 1.2  # furniture at least this high hides what is behind it


def wrap_deg(angle: float) -> float:
    """The same angle in [-180, 180)."""
    return (angle + 180.0) % 360.0 - 180.0


@dataclass(frozen=True, slots=True)
class Pose:
    """A place on the floor (metres) and a heading (degrees, counter-clockwise from +x)."""

    x: float
    y: float
    yaw: float

    @property
    def point(self) -> Point:
        return self.x, self.y

    def bearing(self, x: float, y: float) -> float:
        """Where (x, y) lies, degrees from the heading, positive to the left."""
        return wrap_deg(math.degrees(math.atan2(y - self.y, x - self.x)) - self.yaw)

    def after(self, action: str) -> Pose:
        """The pose an action leads to where nothing is in the way; arm actions change nothing."""
        turn = {
            "rotate_left": TURN_DEG, "rotate_right": -TURN_DEG,
            "rotate_left_small": SMALL_TURN_DEG, "rotate_right_small": -SMALL_TURN_DEG,
        }.get(action)  # fmt: skip
        if turn is not None:
            return Pose(self.x, self.y, wrap_deg(self.yaw + turn))
        step = {"move_ahead": MOVE_M, "move_back": -MOVE_M}.get(action, 0.0)
        rad = math.radians(self.yaw)
        return Pose(self.x + step * math.cos(rad), self.y + step * math.sin(rad), self.yaw)


class NavigationMap:
    """The free floor of a house for a round robot.

    Grid points are `STEP` apart. A field is an array over the grid with the cost of the cheapest
    way to the nearest goal, infinite where there is none.
    """

    STEP = 0.1
    _COMFORT_M = 0.3  # ways keep this far from obstacles beyond the robot's radius where they can

    def __init__(self, house: House, radius: float) -> None:
        self.house = house
        self.radius = radius
        self._fine = Clearance.of(house, self.STEP / 2)
        self.clearance = np.ascontiguousarray(self._fine.values[::2, ::2])
        self.free = self.clearance >= radius
        nx, ny = self.free.shape
        self.xs = self._fine.x0 + self.STEP * np.arange(nx)
        self.ys = self._fine.y0 + self.STEP * np.arange(ny)
        self._x, self._y = self.xs.tolist(), self.ys.tolist()  # numbers of Python, for what looks at a few

    @cached_property
    def _walls(self) -> Clearance:
        """Distance to walls and tall furniture: what one cannot see through."""
        grid = Clearance.empty((self.xs[0], self.ys[0], self.xs[-1], self.ys[-1]), self.STEP / 2)
        for room in self.house.rooms:
            for slab in room_walls(room, self.house.doors):
                grid.add(slab)
        for piece in self.house.furniture:
            if piece.height >= SIGHT_HEIGHT_M:
                grid.add(footprint(piece))
        return grid

    def _graph(self, comfort: float) -> csr_matrix:
        """Edges between free neighbours (8-connected), weighted by metres and by lack of comfort."""
        nx, ny = self.free.shape
        number = np.arange(nx * ny).reshape(nx, ny)
        lack = np.clip((self.radius + comfort - self.clearance) / max(comfort, 1e-9), 0.0, 1.0)
        rows, columns, costs = [], [], []
        for di, dj in ((1, 0), (0, 1), (1, 1), (1, -1)):
            a = (slice(0, nx - di), slice(max(0, -dj), ny - max(0, dj)))
            b = (slice(di, nx), slice(max(0, dj), ny + min(0, dj)))
            both = self.free[a] & self.free[b]
            length = self.STEP * math.hypot(di, dj)
            cost = length * (1.0 + (1.5 * (lack[a] + lack[b])[both] if comfort > 0.0 else 0.0))
            rows.append(number[a][both])
            columns.append(number[b][both])
            costs.append(np.broadcast_to(cost, rows[-1].shape))
        r, c, w = np.concatenate(rows), np.concatenate(columns), np.concatenate(costs)
        return csr_matrix((np.r_[w, w], (np.r_[r, c], np.r_[c, r])), shape=(nx * ny, nx * ny))

    @cached_property
    def _short(self) -> csr_matrix:
        return self._graph(0.0)

    @cached_property
    def _comfortable(self) -> csr_matrix:
        return self._graph(self._COMFORT_M)

    def cell(self, x: float, y: float) -> tuple[int, int]:
        """The grid point nearest to (x, y)."""
        nx, ny = self.free.shape
        i, j = round((x - self._x[0]) / self.STEP), round((y - self._y[0]) / self.STEP)
        return min(max(i, 0), nx - 1), min(max(j, 0), ny - 1)

    def free_cell(self, x: float, y: float) -> tuple[int, int] | None:
        """The free grid point nearest to (x, y), at most half a metre away."""
        i, j = self.cell(x, y)
        if self.free[i, j]:
            return i, j
        n = round(0.5 / self.STEP)
        i0, j0 = max(i - n, 0), max(j - n, 0)
        near = np.argwhere(self.free[i0 : i + n + 1, j0 : j + n + 1]) + (i0, j0)
        if not len(near):
            return None
        d = np.hypot(self.xs[near[:, 0]] - x, self.ys[near[:, 1]] - y)
        k = int(np.argmin(d))
        return (int(near[k, 0]), int(near[k, 1])) if d[k] <= 0.5 else None

    def clearance_at(self, x: float, y: float) -> float:
        """Metres to the nearest wall or furniture (capped at one metre)."""
        return float(self._fine.values[self._fine.index(x, y)])

    def field(
        self, goals: NDArray[np.bool_] | Iterable[Point], *, comfortable: bool = True
    ) -> NDArray[np.float64]:
        """The field of these goals (a mask over the grid, or points): metres where not `comfortable`."""
        if isinstance(goals, np.ndarray):
            sources = np.flatnonzero(goals & self.free)
        else:
            cells = [c for p in goals if (c := self.free_cell(*p)) is not None]
            sources = np.array([i * self.free.shape[1] + j for i, j in cells], dtype=np.int64)
        if not len(sources):
            return np.full(self.free.shape, np.inf)
        graph = self._comfortable if comfortable else self._short
        costs = dijkstra(graph, directed=False, indices=np.unique(sources), min_only=True)
        return np.asarray(costs).reshape(self.free.shape)

    def value(self, field: NDArray[np.float64], x: float, y: float) -> float:
        """The field at (x, y); infinite off the free floor."""
        cell = self.free_cell(x, y)
        return math.inf if cell is None else float(field[cell])

    def descend(
        self, field: NDArray[np.float64], x: float, y: float, known: dict[Cell, Cell] | None = None
    ) -> list[Point]:
        """The way from (x, y) down the field to a goal, grid point by grid point.

        Args:
            field: from `field`.
            x: metres.
            y: metres.
            known: takes up which grid point follows on which, so that another way down the same field need not look.
        """
        cell = self.free_cell(x, y)
        if cell is None or not math.isfinite(field[cell]):
            return []
        known = {} if known is None else known
        way = []
        while True:
            way.append((self._x[cell[0]], self._y[cell[1]]))
            below = known.get(cell)
            if below is None:
                below = known[cell] = _below(field, cell)
            if below == cell:
                return way
            cell = below

    def lines_free(self, a: Point, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """[N] whether the robot can go straight from a to each of these points [N, 2]."""
        farthest = float(np.hypot(*(points - a).T).max())
        t = np.linspace(0.0, 1.0, max(2, math.ceil(farthest / self._fine.step) + 1))[:, None]
        x, y = (a[k] + t * (points[:, k] - a[k]) for k in (0, 1))
        return np.asarray(self._fine.at(x, y).min(0) >= self.radius - 0.02)

    def ranges(self, pose: Pose, bearings: Sequence[float], farthest: float) -> NDArray[np.float64]:
        """[N] metres the robot could go straight along each bearing (degrees from its heading), `farthest` at most.

        Where it already stands nearer to something than ways of the planner lead, it may go where that gets no nearer.
        """
        out = np.arange(0.0, farthest + 1e-9, self._fine.step)
        angles = np.radians(pose.yaw + np.asarray(bearings, np.float64))[:, None]
        along = self._fine.at(pose.x + out * np.cos(angles), pose.y + out * np.sin(angles))
        here = float(along[0, 0]) - _NEARER_M
        blocked = along < min(self.radius - 0.02, here)
        first = np.where(blocked.any(1), blocked.argmax(1) - 1, len(out) - 1)
        return np.asarray(out[first])

    def straight_free(self, a: Point, points: Sequence[Point]) -> NDArray[np.bool_]:
        """[N] whether the robot, 2 cm slimmer, can go straight from a to each of these points."""
        return self._fine.least_between([a] * len(points), points) >= self.radius - 0.02

    def in_sight(self, a: Point, b: Point, margin: float = 0.01) -> bool:
        """Whether neither walls nor tall furniture come within `margin` of the line between two points."""
        return bool(self.all_in_sight([a], b, margin)[0])

    def all_in_sight(self, points: Sequence[Point], b: Point, margin: float = 0.01) -> NDArray[np.bool_]:
        """[N] the same of lines from each of these points to b."""
        return self._walls.least_between(points, [b] * len(points)) > margin

    def random_pose(
        self, rng: np.random.Generator, where: NDArray[np.bool_] | None = None, *, room: Room | None = None
    ) -> Pose | None:
        """A free pose, drawn evenly; None where the area asked for is empty."""
        free = self.free if where is None else self.free & where
        if room is not None:
            free = free & self.mask(room)
        cells = np.argwhere(free)
        if not len(cells):
            return None
        i, j = cells[int(rng.integers(len(cells)))]
        return Pose(float(self.xs[i]), float(self.ys[j]), wrap_deg(float(rng.uniform(0.0, 360.0))))

    def mask(self, room: Room, margin: float = 0.0) -> NDArray[np.bool_]:
        """Which grid points lie in a room, at least `margin` metres from its border."""
        in_x = (self.xs >= room.x0 + margin) & (self.xs <= room.x1 - margin)
        in_y = (self.ys >= room.y0 + margin) & (self.ys <= room.y1 - margin)
        return np.asarray(in_x[:, None] & in_y[None, :])

    def within(self, x: float, y: float, nearest: float, farthest: float) -> NDArray[np.bool_]:
        """Which grid points lie between two distances from (x, y)."""
        d = np.hypot(self.xs[:, None] - x, self.ys[None, :] - y)
        return np.asarray((d >= nearest) & (d <= farthest))


def turns(error: float, *, tolerance: float) -> str | None:
    """The next rotation that takes off a heading error (degrees, positive: turn left), or None."""
    if abs(error) <= tolerance:
        return None
    coarse = abs(error) > TURN_DEG / 2
    return f"rotate_{'left' if error > 0 else 'right'}{'' if coarse else '_small'}"


def drive(
    nav: NavigationMap,
    field: NDArray[np.float64],
    pose: Pose,
    arrived: Callable[[Pose], bool],
    limit: int,
    *,
    lookahead: float = 2.5,
) -> tuple[list[str], Pose]:
    """At most `limit` actions down a field, and the pose they lead to if nothing slips.

    Heads for the farthest point of the way that can be reached straight: turns until it is ahead
    (coarsely, then finely), then moves.
    """
    actions: list[str] = []
    known: dict[Cell, Cell] = {}
    while len(actions) < limit and not arrived(pose):
        way = nav.descend(field, pose.x, pose.y, known)
        if not way:
            break
        goal = _straight(nav, pose, way, lookahead)
        distance = math.dist(pose.point, goal)
        if distance < MOVE_M / 2 and goal == way[-1]:
            break
        action = turns(pose.bearing(*goal), tolerance=HEADING_DEG) or "move_ahead"
        actions.append(action)
        pose = pose.after(action)
    return actions, pose


def _straight(nav: NavigationMap, pose: Pose, way: Sequence[Point], lookahead: float) -> Point:
    """The farthest point of a way that can be reached straight, within `lookahead` metres."""
    near = list(itertools.takewhile(lambda p: math.dist(pose.point, p) <= lookahead, way[1:]))
    free = np.flatnonzero(nav.straight_free(pose.point, near)).tolist() if near else []
    return near[free[-1]] if free else way[min(1, len(way) - 1)]


def _below(field: NDArray[np.float64], cell: Cell) -> Cell:
    """The neighbour that is nearest to a goal, or the grid point itself where none is nearer."""
    i, j = cell
    if field[i, j] <= 0.0:
        return cell
    i0, j0 = max(i - 1, 0), max(j - 1, 0)
    window = field[i0 : i + 2, j0 : j + 2]
    di, dj = divmod(int(window.argmin()), window.shape[1])
    return cell if window[di, dj] >= field[i, j] else (i0 + di, j0 + dj)
