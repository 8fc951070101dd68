"""An episode before it begins: the house, the task in it, the start, and how far it is to success."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllib_vlm.errors import SimulatorError
from rllib_vlm.sims.household.grasp import STRETCH, Body
from rllib_vlm.sims.household.houses import generate_house
from rllib_vlm.sims.household.place import Place
from rllib_vlm.sims.household.planner import Pose
from rllib_vlm.sims.household.tasks import GRASPING, Task, TaskName, draw_task
from rllib_vlm.sims.household.world import House, Item, Split
from rllib_vlm.sims.tasks import Start

NEAR_START_M = (0.3, 1.2)  # how far a `near` start is from where the task can be finished
ROOM_MARGIN_M = 0.35  # so far inside a room one is surely in it
_TRIES = 25
_KEPT_HOUSES = 4


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
        self, seed: int, split: Split, *, name: TaskName, start: Start, rng: np.random.Generator,
        house: int | None = None,
    ) -> Episode:  # fmt: skip
        """An episode of this task; houses that do not allow one are passed over.

        Args:
            seed: of the episode; kept in it, and what `rng` was made from.
            split: of the house.
            name: the task.
            start: the kind of start.
            rng: what everything is drawn with.
            house: the seed of the one house it may be in; None draws a house.

        Raises:
            SimulatorError: no house that was tried allows the task, or there is no such house.
        """
        for _ in range(_TRIES):
            drawn = int(rng.integers(*self._range))  # drawn always, so that the rest stays the same
            place = self.place(drawn if house is None else house, split)

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
        if house is not None:
            raise SimulatorError(
                f"house {house} of split {split!r} with {self._parameters} allows no {name} task with a start "
                f"{start!r} (seed {seed}). Give another house or another task."
            )
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
