"""What the robot can see now, in words and robot-centred numbers: no more than its cameras show."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rllib_vlm.sims.household.planner import NavigationMap, Pose, wrap_deg
from rllib_vlm.sims.household.world import Camera, Door, House, Room, View, World

CAMERAS: tuple[Camera, Camera] = ("navigation", "manipulation")
CAMERA_YAW: dict[Camera, float] = {"navigation": 0.0, "manipulation": -90.0}
VERTICAL_FOV_DEG = 59.0  # SPOC's cameras
SEEN_SHARE, SEEN_PIXELS = 0.3, 16.0  # what counts as seen, in one camera: fewer pixels tell no colours apart
DOOR_RANGE_M = 6.0
REVEAL_M, REVEAL_DEG = 4.0, 60.0  # how near and how straight an open door shows the room behind it

Kind = Literal["item", "furniture", "door"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """One visible thing."""

    id: str
    kind: Kind
    words: str  # "red mug", "walnut table", "door", "door to kitchen"
    type: str  # "mug", "table", "door"
    bearing: float  # deg from the robot's heading, positive to the left
    distance: float  # m on the floor, from the robot's centre
    x: float
    y: float
    z: float
    cameras: tuple[Camera, ...]
    centred: float  # deg from the axis of the camera that shows it most centrally
    room: str | None = None  # of furniture: its room's type. Of doors: the type behind it, if it shows


def horizontal_fov(camera_size: tuple[int, int]) -> float:
    """The cameras' horizontal field of view in degrees."""
    width, height = camera_size
    return 2.0 * math.degrees(math.atan(math.tan(math.radians(VERTICAL_FOV_DEG / 2)) * width / height))


def is_seen(view: View, pixels: float = SEEN_PIXELS) -> bool:
    """Whether enough of a thing shows, in enough pixels to be told apart."""
    return view.visible >= SEEN_SHARE and view.pixels >= pixels


class Scene:
    """The robot's surroundings as its two cameras show them, things of at least `seen_pixels` in one of them."""

    def __init__(
        self, world: World, house: House, nav: NavigationMap, seen_pixels: float = SEEN_PIXELS
    ) -> None:
        self.world, self.house, self.nav, self.seen_pixels = world, house, nav, seen_pixels
        self.half_fov = horizontal_fov(world.camera_size) / 2.0
        self._items = {i.id: i for i in house.items}
        self._furniture = {f.id: f for f in house.furniture}
        self._rooms = {r.id: r for r in house.rooms}

    @property
    def pose(self) -> Pose:
        robot = self.world.robot
        return Pose(robot.x, robot.y, robot.yaw)

    @property
    def room(self) -> Room | None:
        """The room the robot is in."""
        return self.house.room_at(self.pose.x, self.pose.y)

    def look(self) -> list[Sighting]:
        """Everything visible, nearest first."""
        seen = [*self.things([*self._items, *self._furniture]), *self.doors()]
        return sorted(seen, key=lambda s: (s.distance, s.id))

    def things(self, ids: Iterable[str]) -> list[Sighting]:
        """Which of these items and furniture pieces are visible, and where."""
        wanted = list(ids)
        views = {camera: self.world.views(camera, wanted) for camera in CAMERAS}
        pose = self.pose
        found = []
        for thing in wanted:
            cameras = tuple(c for c in CAMERAS if is_seen(views[c][thing], self.seen_pixels))
            if not cameras:
                continue
            x, y, z = self.world.position(thing)
            item, piece = self._items.get(thing), self._furniture.get(thing)
            if item is not None:
                kind: Kind = "item"
                type_, color, room = item.type, item.color, None
            else:
                assert piece is not None
                kind = "furniture"
                type_, color, room = piece.type, piece.color, self._rooms[piece.room].type
            found.append(Sighting(
                id=thing, kind=kind, words=f"{color} {type_}", type=type_, bearing=pose.bearing(x, y),
                distance=math.dist(pose.point, (x, y)), x=x, y=y, z=z, cameras=cameras, room=room,
                centred=min(abs(views[c][thing].bearing) for c in cameras),
            ))  # fmt: skip
        return found

    def doors(self) -> list[Sighting]:
        """Which doors are in view and not behind a wall or tall furniture."""
        return [s for d in self.house.doors if (s := self._door(d)) is not None]

    def _door(self, door: Door) -> Sighting | None:
        pose = self.pose
        bearing, distance = pose.bearing(door.x, door.y), math.dist(pose.point, (door.x, door.y))
        offsets = {c: abs(wrap_deg(bearing - CAMERA_YAW[c])) for c in CAMERAS}
        cameras = tuple(c for c in CAMERAS if offsets[c] <= self.half_fov)
        if not cameras or not 0.3 <= distance <= DOOR_RANGE_M:
            return None
        if not self.nav.in_sight(pose.point, (door.x, door.y)):
            return None
        behind = self._behind(door, distance)
        return Sighting(
            id=door.id, kind="door", words=f"door to {behind}" if behind else "door", type="door",
            bearing=bearing, distance=distance, x=door.x, y=door.y, z=1.0, cameras=cameras, room=behind,
            centred=min(offsets[c] for c in cameras),
        )  # fmt: skip

    def _behind(self, door: Door, distance: float) -> str | None:
        """The type of the room a door leads to, if its floor shows through the door."""
        here = self.room
        if here is None or here.id not in door.rooms or distance > REVEAL_M:
            return None
        pose = self.pose
        across, along = abs(door.x - pose.x), abs(door.y - pose.y)
        if door.axis == "y":
            across, along = along, across
        if math.degrees(math.atan2(along, across)) > REVEAL_DEG:
            return None
        other = next(r for r in door.rooms if r != here.id)
        return self._rooms[other].type
