"""Tours: the robot is shown around a crowded house. For learning to see, not to act.

An expert's own way shows few things, far away or again and again the same. A tour looks from near and
from far at one drawn piece of furniture after another, half of the time with the side camera.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from rllib_vlm.sims.household.floorplan import footprint
from rllib_vlm.sims.household.place import Place
from rllib_vlm.sims.household.planner import Pose
from rllib_vlm.sims.household.robot import STOWED
from rllib_vlm.types import Demonstration, Detection

TOUR_ITEMS = (14, 20)  # objects of a toured house; more seldom fit, and drawing again takes long
TOUR_TURNS = 20
_REACH_M = (0.6, 1.2, 2.0, 3.5)  # a viewpoint lies at most so far from what it looks at, one of these
_ASIDE_DEG = 20.0  # spread around looking straight at it
_SIDE_SHARE, _LIFT_SHARE, _ARM_SHARE = 0.4, 0.4, 0.25  # of views: with the side camera, lift moved, arm out


def viewpoint(place: Place, rng: np.random.Generator) -> tuple[Pose, float, float] | None:
    """A pose from which to look at one of a house's receptacles, and lift and arm; None where there is none."""
    nav = place.nav
    pieces = [piece for piece in place.house.furniture if piece.receptacle]
    piece = pieces[int(rng.integers(len(pieces)))]
    x0, y0, x1, y1 = footprint(piece)
    across = np.maximum(np.maximum(x0 - nav.xs, nav.xs - x1), 0.0)[:, None]
    along = np.maximum(np.maximum(y0 - nav.ys, nav.ys - y1), 0.0)[None, :]
    near = np.hypot(across, along) <= _REACH_M[int(rng.integers(len(_REACH_M)))]
    stand = nav.random_pose(rng, near & place.reachable)
    if stand is None:
        return None
    yaw = math.degrees(math.atan2(rng.uniform(y0, y1) - stand.y, rng.uniform(x0, x1) - stand.x))
    yaw += float(rng.normal(0.0, _ASIDE_DEG)) + (90.0 if rng.random() < _SIDE_SHARE else 0.0)
    lift = float(rng.uniform(0.2, 1.1)) if rng.random() < _LIFT_SHARE else STOWED[0]
    arm = float(rng.uniform(0.0, 0.5)) if rng.random() < _ARM_SHARE else STOWED[1]
    return Pose(stand.x, stand.y, (yaw + 180.0) % 360.0 - 180.0), lift, arm


class Guide:
    """The expert of a tour: says what there is to see, and does nothing that matters."""

    def __init__(self, shown: Callable[[], tuple[Detection, ...]]) -> None:
        self._shown = shown

    def __call__(self) -> Demonstration:
        return Demonstration(actions=("rotate_left",), detections=self._shown())
