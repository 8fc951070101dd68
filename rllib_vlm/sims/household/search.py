"""The expert that teaches searching: it acts only on what the robot's cameras have shown it.

Rules, in this order, simple enough for a reactive policy with a short memory:

1. The target has been seen: go to it, take it, stop.
2. Its receptacle has been seen: go near and look at it, from another side if need be.
3. The room is the named one (or none is named) and not looked around yet: turn left.
4. A door to the named room shows: go through. Not looked around yet: turn left. Otherwise go through
   the nearest door to a room not entered yet.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rllib_vlm.sims.household.episode import ROOM_MARGIN_M
from rllib_vlm.sims.household.expert import HouseholdExpert
from rllib_vlm.sims.household.floorplan import footprint
from rllib_vlm.sims.household.manoeuvres import Manoeuvre
from rllib_vlm.sims.household.planner import Point, Pose
from rllib_vlm.sims.household.scene import Sighting
from rllib_vlm.sims.household.tasks import GRASPING
from rllib_vlm.sims.household.world import Furniture, Room

LOOK_TURN = ("rotate_left", "rotate_left", "rotate_left")
VANTAGE_M = (0.25, 1.0)  # from a receptacle's edge: where the things on it can be told apart
_FULL_TURN = 12 // len(LOOK_TURN)  # turns that go all the way round
_ELSEWHERE_M = 1.2  # another place to look around from is at least this far away
_ASIDE_M = 0.8  # another look from at least this far away


class SearchExpert(HouseholdExpert):
    """Searches as the robot could."""

    def _start(self) -> None:
        super()._start()
        self._committed: str | None = None  # the room it is on its way to
        self._turns_for_door = 0  # made since it has looked around, for a door to come into view
        self._spot: Point | None = None  # the place it is on its way to, to look around there

    def decide(self) -> Manoeuvre | None:
        if self.task.name == "RoomVisit":
            return self.mark_or_finish() or self._explore()
        if self.task.name == "RoomNav":
            return self._enter_named_room() or self._explore()
        robot = self.env.world.robot
        if self.task.name in GRASPING and robot.held is not None:
            return Manoeuvre(("done",) if robot.held in self.task.targets else ("dropoff",), "stop")
        target = self.memory.nearest_target(self.moves.pose.point)
        if target is not None:
            return self._finish(target)
        return self._inspect() or self._explore()

    def _finish(self, target: str) -> Manoeuvre | None:
        if self.task.name == "ObjectNav":
            return self.look_at(target, self.memory.seen_at[target])
        return self.moves.take(target, self.memory.seen_at[target])

    def _enter_named_room(self) -> Manoeuvre | None:
        """RoomNav: stops in the room, or drives to it once its floor has shown through a door."""
        if self.env.referee.succeeded():
            return Manoeuvre(("done",), "stop")
        known = [d for d in self.memory.doors.values() if d.room == self.task.room]
        return self._through(known[0]) if known else None

    def _inspect(self) -> Manoeuvre | None:
        """Goes near a named receptacle that has been seen, and looks at it."""
        for place_id in sorted(self.memory.places):
            piece = next(f for f in self.episode.house.furniture if f.id == place_id)
            move = self._look_over(piece)
            if move is not None:
                return move
        return None

    def _look_over(self, piece: Furniture) -> Manoeuvre | None:
        pose, memory = self.moves.pose, self.memory
        bearing = pose.bearing(piece.x, piece.y)
        if _edge_distance(piece, *pose.point) <= VANTAGE_M[1] and abs(bearing) <= _FACING:
            memory.looked_from.append(pose.point)
        mask = self._vantages(piece)
        for x, y in memory.looked_from:
            mask &= ~self.nav.within(x, y, 0.0, _ASIDE_M)
        if not mask.any():
            return None

        def arrived(at: Pose) -> bool:
            return bool(mask[self.nav.cell(at.x, at.y)])

        return (
            self.moves.stow()
            or self.moves.go(f"vantage {piece.id}", mask, "go to place", arrived)
            or self.moves.face(piece.x, piece.y, "look at place", tolerance=_FACING - 5.0)
        )

    def _vantages(self, piece: Furniture) -> NDArray[np.bool_]:
        """Free points from which the things on a piece can be seen well."""
        room = next(r for r in self.episode.house.rooms if r.id == piece.room)
        x0, y0, x1, y1 = footprint(piece)
        nav = self.nav
        dx = np.maximum(np.maximum(x0 - nav.xs, nav.xs - x1), 0.0)[:, None]
        dy = np.maximum(np.maximum(y0 - nav.ys, nav.ys - y1), 0.0)[None, :]
        distance = np.hypot(dx, dy)
        near = (distance >= VANTAGE_M[0]) & (distance <= VANTAGE_M[1])
        return np.asarray(near & self.place.reachable & nav.mask(room))

    # ----- looking for the right room

    def _explore(self) -> Manoeuvre | None:
        room = self.env.scene.room
        if room is None:
            return Manoeuvre(("move_ahead",), "search")
        if self._spot is not None:
            move = self._go_to_spot(self._spot)
            if move is not None:
                return move
        if self._committed is not None:
            move = self._go_on(room)
            if move is not None:
                return move
        candidates = [d for d in self.memory.doors.values() if self.memory.behind(d.id)]
        named = [d for d in candidates if self.task.room and d.room == self.task.room]
        here = self.task.room in ("", room.type) and self.task.name not in ("RoomVisit", "RoomNav")
        if named and not here:
            return self._through(named[0])
        if not self.memory.looked_around(room.id):
            return self._turn()
        if not candidates:
            return self._stand_elsewhere(room)
        if not any(d.id in self.memory.now for d in candidates) and self._turns_for_door < _FULL_TURN:
            # Turning on until a door shows is easier to learn than turning to one out of view.
            self._turns_for_door += 1
            return self._turn()
        return self._through(min(candidates, key=self._preference))

    def _stand_elsewhere(self, room: Room) -> Manoeuvre | None:
        """Looks around again from a place well away from those where that was in vain."""
        pose, memory = self.moves.pose, self.memory
        memory.stood.append(pose.point)
        mask = np.zeros_like(self.place.reachable)
        for known in self.episode.house.rooms:
            if known.id in memory.entered:
                mask |= self.nav.mask(known, ROOM_MARGIN_M)
        mask &= self.place.reachable
        for x, y in memory.stood:
            mask &= ~self.nav.within(x, y, 0.0, _ELSEWHERE_M)
        if not mask.any():
            memory.stood.clear()
            memory.look_again()
            return self._turn()

        def arrived(at: Pose) -> bool:
            return bool(mask[self.nav.cell(at.x, at.y)])

        field = self.moves.field("elsewhere", mask)
        way = self.nav.descend(field, *pose.point)
        self._spot = way[-1] if way else None
        return self.moves.stow() or self.moves.go("elsewhere", mask, "go on", arrived)

    def _preference(self, door: Sighting) -> tuple[bool, float, str]:
        """Doors that are visible now first, then the nearest."""
        distance = math.dist(self.moves.pose.point, (door.x, door.y))
        return door.id not in self.memory.now, distance, door.id

    def _turn(self) -> Manoeuvre:
        return Manoeuvre(LOOK_TURN[: self.max_actions], "search")

    def _through(self, door: Sighting) -> Manoeuvre | None:
        """Starts on the way through a door to a room not entered yet."""
        behind = self.memory.behind(door.id)
        if not behind:
            return None
        self._committed, self._turns_for_door = behind[0], 0
        return self.enter(self._room(self._committed), "go to door")

    def _go_on(self, room: Room) -> Manoeuvre | None:
        """Goes on to the room it is on its way to, until well inside."""
        assert self._committed is not None
        move = self.enter(self._room(self._committed), "go to door")
        if move is None or (room.id == self._committed and self._inside(room)):
            self._committed = None
            return None
        return move

    def _go_to_spot(self, spot: Point) -> Manoeuvre | None:
        """Goes on to the place where it will look around again."""
        mask = self.nav.within(*spot, 0.0, 0.25) & self.place.reachable
        move = self.moves.stow() or self.moves.go(
            "spot", mask, "go on", lambda at: math.dist(at.point, spot) <= 0.25
        )
        if move is None or any(self.memory.behind(d) for d in self.memory.doors):
            self._spot = None
            self.memory.look_again()
            return None
        return move

    def _inside(self, room: Room) -> bool:
        x, y = self.moves.pose.point
        m = ROOM_MARGIN_M - 0.05
        return room.x0 + m <= x <= room.x1 - m and room.y0 + m <= y <= room.y1 - m

    def _room(self, room_id: str) -> Room:
        return next(r for r in self.episode.house.rooms if r.id == room_id)


_FACING = 30.0


def _edge_distance(piece: Furniture, x: float, y: float) -> float:
    """Metres from a point to a piece's footprint."""
    x0, y0, x1, y1 = footprint(piece)
    return math.hypot(max(x0 - x, x - x1, 0.0), max(y0 - y, y - y1, 0.0))
