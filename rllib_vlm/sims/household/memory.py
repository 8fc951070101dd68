"""What a searching robot knows: only what its cameras have shown since the episode began."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from rllib_vlm.sims.household.planner import Point, wrap_deg
from rllib_vlm.sims.household.scene import CAMERA_YAW, Scene, Sighting
from rllib_vlm.sims.household.world import House

_BINS = 12  # headings are remembered in sectors of 30 degrees
_SECTOR_DEG = 360.0 / _BINS


@dataclass(slots=True)
class Memory:
    """Updated from the present views before each of the expert's turns."""

    house: House
    targets: frozenset[str]
    receptacles: frozenset[str]  # the pieces the instruction names, once they are seen
    seen_at: dict[str, tuple[float, float, float]] = field(default_factory=dict)  # targets, where last seen
    places: dict[str, Sighting] = field(default_factory=dict)  # named receptacles seen
    doors: dict[str, Sighting] = field(default_factory=dict)
    entered: set[str] = field(default_factory=set)  # rooms
    sectors: dict[str, set[int]] = field(default_factory=dict)  # per room, headings looked along
    looked_from: list[Point] = field(default_factory=list)  # where named receptacles were looked at from near
    stood: list[Point] = field(default_factory=list)  # where it has looked around in vain
    now: dict[str, Sighting] = field(default_factory=dict)  # everything relevant that is visible now

    def update(self, scene: Scene) -> None:
        """Takes in what is visible now."""
        relevant = sorted(self.targets | self.receptacles)
        self.now = {s.id: s for s in [*scene.things(relevant), *scene.doors()]}
        for seen in self.now.values():
            if seen.kind == "door":
                known = self.doors.get(seen.id)
                self.doors[seen.id] = seen if seen.room or known is None else known
            elif seen.kind == "item":
                self.seen_at[seen.id] = (seen.x, seen.y, seen.z)
            else:
                self.places[seen.id] = seen
        room = scene.room
        if room is not None:
            self.entered.add(room.id)
            self.sectors.setdefault(room.id, set()).update(self._looked_along(scene))

    @staticmethod
    def _looked_along(scene: Scene) -> set[int]:
        """The sectors that lie (by their middle) in one of the cameras' fields of view."""
        middles = [(k, k * _SECTOR_DEG + _SECTOR_DEG / 2) for k in range(_BINS)]
        yaws = [scene.pose.yaw + offset for offset in CAMERA_YAW.values()]
        return {k for k, m in middles for yaw in yaws if abs(wrap_deg(m - yaw)) <= scene.half_fov + 1.0}

    def looked_around(self, room_id: str) -> bool:
        """Whether the robot has looked in all directions in this room."""
        return len(self.sectors.get(room_id, ())) == _BINS

    def visible(self, kind: str, ids: Sequence[str] | frozenset[str] | None = None) -> Sighting | None:
        """The nearest thing of a kind that is visible now."""
        found = [s for s in self.now.values() if s.kind == kind and (ids is None or s.id in ids)]
        return min(found, key=lambda s: (s.distance, s.id), default=None)

    def nearest_target(self, point: Point) -> str | None:
        """The nearest target seen so far."""
        return min(self.seen_at, key=lambda i: (math.dist(point, self.seen_at[i][:2]), i), default=None)

    def behind(self, door_id: str) -> tuple[str, ...]:
        """The rooms a door leads to that the robot has not been in."""
        door = next(d for d in self.house.doors if d.id == door_id)
        return tuple(r for r in door.rooms if r not in self.entered)

    def look_again(self) -> None:
        """Forgets in which directions it has looked: they are to be looked along from another place."""
        self.sectors.clear()
