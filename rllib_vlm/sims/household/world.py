"""The contract between the task layer (tasks, rewards, expert) and a household simulator.

The embedded MuJoCo simulator and AI2-THOR both stand behind `World`, so there is one task layer.

Conventions: metres; x, y on the floor, z up; yaw in degrees, counter-clockwise, 0 along +x. The
robot drives along its yaw; its arm reaches out to its right, i.e. along yaw - 90 deg, as on
Stretch. The navigation camera looks ahead, the manipulation camera to the right, along the arm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from rllib_vlm.types import ActionSet, Image

Camera = Literal["navigation", "manipulation"]
Split = Literal["train", "heldout"]

# SPOC's 20 actions in the order of its ALL_STRETCH_ACTIONS; step sizes are in robot.py.
# Source: allenai/spoc-robot-training, utils/constants/stretch_initialization_utils.py:140-161.
ACTIONS = ActionSet(
    names=(
        "move_ahead", "rotate_right", "rotate_left", "move_back", "done", "sub_done",
        "rotate_left_small", "rotate_right_small", "pickup", "arm_in", "arm_out", "arm_up",
        "arm_down", "wrist_open", "wrist_close", "arm_down_small", "arm_in_small",
        "arm_out_small", "arm_up_small", "dropoff",
    ),
    aliases={
        "m": "move_ahead", "r": "rotate_right", "l": "rotate_left", "b": "move_back",
        "end": "done", "ls": "rotate_left_small", "rs": "rotate_right_small", "p": "pickup",
        "zm": "arm_in", "zp": "arm_out", "yp": "arm_up", "ym": "arm_down", "wp": "wrist_open",
        "wm": "wrist_close", "yms": "arm_down_small", "zms": "arm_in_small",
        "zps": "arm_out_small", "yps": "arm_up_small", "d": "dropoff",
        "moveahead": "move_ahead", "moveback": "move_back", "rotateright": "rotate_right",
        "rotateleft": "rotate_left", "pick_up": "pickup", "drop": "dropoff",
    },
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Room:
    """An axis-aligned room."""

    id: str
    type: str  # "kitchen", "living room", "bedroom", "bathroom", ...
    x0: float
    y0: float
    x1: float
    y1: float

    def contains(self, x: float, y: float) -> bool:
        return self.x0 <= x <= self.x1 and self.y0 <= y <= self.y1


@dataclass(frozen=True, slots=True)
class Door:
    """An opening in the wall that two rooms share."""

    id: str
    rooms: tuple[str, str]
    x: float  # centre
    y: float
    width: float
    axis: Literal["x", "y"]  # the direction one walks through it


@dataclass(frozen=True, slots=True)
class Furniture:
    """A fixed piece. Receptacles have a top surface at z = `height` on which objects stand."""

    id: str
    type: str  # "table", "sofa", "shelf", ...
    room: str
    x: float
    y: float
    yaw: float
    width: float  # along its own x
    depth: float  # along its own y
    height: float
    color: str
    receptacle: bool


@dataclass(frozen=True, slots=True)
class Item:
    """A loose household object, as the house was built (its place changes once it is moved)."""

    id: str
    type: str  # "mug", "apple", ...
    color: str
    receptacle: str  # furniture id it stands on
    x: float
    y: float
    z: float  # of its centre
    yaw: float
    size: tuple[float, float, float]  # extents
    pickupable: bool = True


@dataclass(frozen=True, slots=True)
class House:
    """A whole house: everything a world needs to build it and a task needs to talk about it."""

    seed: int
    split: Split
    rooms: tuple[Room, ...]
    doors: tuple[Door, ...]
    furniture: tuple[Furniture, ...]
    items: tuple[Item, ...]

    def room_at(self, x: float, y: float) -> Room | None:
        return next((r for r in self.rooms if r.contains(x, y)), None)


@dataclass(frozen=True, slots=True)
class RobotState:
    """Where the robot and its arm are."""

    x: float
    y: float
    yaw: float  # deg, in [-180, 180)
    lift: float  # height of the gripper above the floor, m
    arm: float  # extension beyond the fully retracted arm, m
    wrist: float  # deg
    gripper: tuple[float, float, float]  # world position of the grasp centre
    held: str | None  # id of the held item


@dataclass(frozen=True, slots=True)
class View:
    """How an item (or furniture piece) appears in one camera."""

    visible: float  # share of its sample points that are in the frame and not occluded, 0 to 1
    bearing: float  # deg from the camera's axis, positive to the left
    elevation: float  # deg from the camera's axis, positive up
    distance: float  # m from the camera
    pixels: float  # approximate number of image pixels it covers


class World(Protocol):
    """A household simulator as the task layer sees it. Not thread-safe."""

    camera_size: tuple[int, int]  # (width, height) of both cameras, pixels

    def load(self, house: House, *, x: float, y: float, yaw: float, seed: int) -> None:
        """Builds the house, puts the robot there, arm stowed, and lets everything settle."""

    def place(
        self,
        x: float,
        y: float,
        yaw: float,
        lift: float | None = None,
        arm: float | None = None,
        wrist: float | None = None,
    ) -> None:
        """Puts the robot somewhere without moving it there; joints left out stay as they are."""

    def execute(self, action: str) -> bool:
        """Carries out one of the 20 actions. False where the pose did not change as it should have.

        `done` and `sub_done` move nothing and return True.
        """

    def render(self) -> Mapping[Camera, Image]: ...

    @property
    def robot(self) -> RobotState: ...

    def position(self, id: str) -> tuple[float, float, float]:
        """Present world position of an item's or furniture piece's centre."""

    def views(self, camera: Camera, ids: Iterable[str]) -> dict[str, View]:
        """How each of these items or furniture pieces appears in a camera, hidden ones with visible=0."""

    def graspable(self) -> tuple[str, ...]:
        """Items within the gripper's sphere right now, nearest first."""

    def close(self) -> None: ...
