"""An episode before it begins: the house, the task in it, the start, and how far it is to success."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rllib_vlm.errors import SimulatorError
from rllib_vlm.sims.household.grasp import STRETCH, Body, Target, standing_points
from rllib_vlm.sims.household.houses import generate_house
from rllib_vlm.sims.household.planner import NavigationMap, Pose
from rllib_vlm.sims.household.tasks import GRASPING, Task, TaskName, draw_task
from rllib_vlm.sims.household.world import House, Item, Split
from rllib_vlm.sims.tasks import Start

VIEWING_M = (0.6, 1.4)  # ObjectNav is finished from between these distances
NEAR_START_M = (0.3, 1.2)  # how far a `near` start is from where the task can be finished
ROOM_MARGIN_M = 0.35  # so far inside a room one is surely in it
_TRIES = 25
_KEPT_HOUSES = 4


class Place:
    """A house with what the planner knows of it; masks are computed once per item and kept."""

    def __init__(self, house: House, body: Body = STRETCH) -> None:
        self.house, self.body = house, body
        self.nav = NavigationMap(house, body.radius)
        self._masks: dict[str, NDArray[np.bool_]] = {}

    @cached_property
    def reachable(self) -> NDArray[np.bool_]:
        """The largest connected part of the free floor."""
        labels, count = _label(self.nav.free)
        if count == 0:
            return np.zeros_like(self.nav.free)
        return np.asarray(labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:])))

    def as_target(self, item: Item, position: tuple[float, float, float] | None = None) -> Target:
        """An item as the planner sees it, at its first place or at another one."""
        x, y, z = position or (item.x, item.y, item.z)
        width, depth, height = item.size
        return Target(
            id=item.id,
            x=x,
            y=y,
            z=z,
            top=z + height / 2,
            radius=max(width, depth) / 2,
            depth=(width + depth) / 4,
        )

    def standing(self, item: Item) -> NDArray[np.bool_]:
        """Grid points from which this item can be taken at its first place."""
        if item.id not in self._masks:
            others = [self.as_target(i) for i in self.house.items if i.receptacle == item.receptacle]
            mask = standing_points(self.nav, self.body, self.as_target(item), others)
            self._masks[item.id] = mask & self.reachable
        return self._masks[item.id]

    def viewing(self, item: Item) -> NDArray[np.bool_]:
        """Grid points from which this item can be looked at from near."""
        key = f"view {item.id}"
        if key not in self._masks:
            mask = self.reachable & self.nav.within(item.x, item.y, *VIEWING_M)
            for i, j in np.argwhere(mask):
                point = float(self.nav.xs[i]), float(self.nav.ys[j])
                mask[i, j] = self.nav.in_sight(point, (item.x, item.y), 0.08)
            self._masks[key] = mask
        return self._masks[key]


def _label(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    return np.asarray(labels, np.int32), int(count)


@dataclass(slots=True, kw_only=True)
class Episode:
    """One episode's givens."""

    seed: int
    split: Split
    place: Place
    task: Task
    start: Pose
    start_kind: Start
    goal: NDArray[np.bool_]  # grid points where the task can be finished; nothing set for RoomVisit
    way: NDArray[np.float64] = field(repr=False)  # metres from each grid point to the goal

    @property
    def house(self) -> House:
        return self.place.house

    @property
    def items(self) -> Mapping[str, Item]:
        return {i.id: i for i in self.house.items}

    def distance(self, x: float, y: float) -> float:
        """Geodesic metres from (x, y) to where the task can be finished."""
        return self.place.nav.value(self.way, x, y)


def goal_mask(place: Place, task: Task) -> NDArray[np.bool_]:
    """Where the task can be finished, as a mask over the grid."""
    nav = place.nav
    mask = np.zeros_like(nav.free)
    if task.name == "RoomNav":
        for room in place.house.rooms:
            if room.type == task.room:
                mask |= nav.mask(room, ROOM_MARGIN_M)
    targets = set(task.targets)
    for item in place.house.items:
        if item.id in targets:
            mask |= place.standing(item) if task.name in GRASPING else place.viewing(item)
    return mask & place.reachable


class EpisodeSource:
    """Draws episodes: everything about one follows from its seed, split, task and start."""

    def __init__(
        self, *, house_seeds: tuple[int, int], house: Mapping[str, Any], body: Body = STRETCH
    ) -> None:
        self._range, self._parameters, self._body = house_seeds, dict(house), body
        self._places: OrderedDict[tuple[int, Split], Place] = OrderedDict()

    def place(self, seed: int, split: Split) -> Place:
        """The house with this seed; the last few are kept."""
        key = (seed, split)
        if key not in self._places:
            self._places[key] = Place(generate_house(seed, split, **self._parameters), self._body)
            while len(self._places) > _KEPT_HOUSES:
                self._places.popitem(last=False)
        self._places.move_to_end(key)
        return self._places[key]

    def draw(
        self, seed: int, split: Split, *, name: TaskName, start: Start, rng: np.random.Generator
    ) -> Episode:
        """An episode of this task; houses that do not allow one are passed over.

        Raises:
            SimulatorError: no house that was tried allows the task.
        """
        for _ in range(_TRIES):
            place = self.place(int(rng.integers(*self._range)), split)

            def reachable(item: Item, place: Place = place) -> bool:
                mask = place.standing(item) if name in GRASPING else place.viewing(item)
                return bool(mask.any())

            task = draw_task(place.house, name, rng, reachable=reachable)
            if task is None:
                continue
            goal = goal_mask(place, task)
            way = place.nav.field(goal, comfortable=False)
            pose = _draw_start(place, task, goal, way, start, rng)
            if pose is not None:
                return Episode(
                    seed=seed, split=split, place=place, task=task, start=pose, start_kind=start,
                    goal=goal, way=way,
                )  # fmt: skip
        raise SimulatorError(
            f"no {name} task in {_TRIES} houses with {self._parameters} (seed {seed}, split {split!r}). "
            "Allow more items or more rooms."
        )


def _draw_start(
    place: Place, task: Task, goal: NDArray[np.bool_], way: NDArray[np.float64], start: Start,
    rng: np.random.Generator,
) -> Pose | None:  # fmt: skip
    nav = place.nav
    roomy = place.reachable & (nav.clearance >= place.body.radius + 0.05)
    if task.name == "RoomVisit":
        return nav.random_pose(rng, roomy)
    area = roomy & np.isfinite(way) & ~goal if task.name == "RoomNav" else roomy & np.isfinite(way)
    if task.name == "RoomNav":
        inside = [nav.mask(r) for r in place.house.rooms if r.type == task.room]
        area &= ~np.logical_or.reduce(inside)
    item = next((i for i in place.house.items if i.id in task.targets), None)
    if start == "anywhere" or item is None:
        far = {"near": 1.5, "same_room": 3.0, "anywhere": math.inf}[start]
        return nav.random_pose(rng, area & (way <= far)) or nav.random_pose(rng, area)
    room = place.house.room_at(item.x, item.y)
    if start == "same_room":
        return nav.random_pose(rng, area, room=room) or nav.random_pose(rng, area)
    near = area & (way >= NEAR_START_M[0]) & (way <= NEAR_START_M[1])
    pose = nav.random_pose(rng, near, room=room) or nav.random_pose(rng, area, room=room)
    if pose is None:
        return nav.random_pose(rng, area)
    yaw = pose.yaw + pose.bearing(item.x, item.y) + float(rng.uniform(-30.0, 30.0))
    return Pose(pose.x, pose.y, (yaw + 180.0) % 360.0 - 180.0)
