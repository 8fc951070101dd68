"""How things appear in a camera, without drawing: projected sample points and rays for what hides them."""

from __future__ import annotations

import math
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from rllib_vlm.errors import UnknownNameError
from rllib_vlm.sims.household.world import House, View

# What hides things: walls and furniture (0), the robot's arm and base (2), collision shapes (3).
_OPAQUE = np.array([1, 0, 1, 1, 0, 0], np.uint8)
_INSET = 0.85  # sample points lie this far out from the centre, relative to the half extents


class Sight:
    """Sample points of every item and furniture piece of a house, and how cameras see them."""

    def __init__(self, house: House, model: Any, data: Any, bodies: dict[str, int], fov: float) -> None:
        self._model, self._data, self._bodies = model, data, bodies
        self._focal = 0.5 / math.tan(math.radians(fov) / 2)  # in image heights
        self._points: dict[str, NDArray[np.float64]] = {i.id: _item_points(*i.size) for i in house.items}
        self._points |= {f.id: _furniture_points(f.width, f.depth, f.height) for f in house.furniture}

    def views(self, camera: int, ids: list[str], size: tuple[int, int]) -> dict[str, View]:
        """The view of each id in a camera of `size` (width, height) pixels."""
        d = self._data
        eye, axes = d.cam_xpos[camera], d.cam_xmat[camera].reshape(3, 3)  # columns: right, up, backwards
        aspect = size[0] / size[1]
        result = {}
        for name in ids:
            if name not in self._points:
                raise UnknownNameError("the house", name, self._points)
            body = self._bodies[name]
            world = self._points[name] @ d.xmat[body].reshape(3, 3).T + d.xpos[body]
            result[name] = self._view(body, world, eye, axes, aspect, size[1])
        return result

    def _view(
        self,
        body: int,
        world: NDArray[np.float64],
        eye: NDArray[np.float64],
        axes: NDArray[np.float64],
        aspect: float,
        height: int,
    ) -> View:
        rays = world - eye
        local = rays @ axes
        depth = -local[:, 2]
        distance = float(np.linalg.norm(local[0]))
        bearing = math.degrees(math.atan2(-local[0, 0], depth[0]))
        elevation = math.degrees(math.atan2(local[0, 1], math.hypot(local[0, 0], depth[0])))
        safe = np.maximum(depth, 1e-6)
        u = self._focal * local[:, 0] / safe  # in image heights from the centre
        v = self._focal * local[:, 1] / safe
        inside = (depth > 0.01) & (np.abs(u) <= aspect / 2) & (np.abs(v) <= 0.5)
        count = int(inside.sum())
        if count == 0:
            return View(0.0, bearing, elevation, distance, 0.0)
        targets = np.ascontiguousarray(rays[inside])
        geoms, hits = np.empty(count, np.int32), np.empty(count)
        mujoco.mj_multiRay(
            self._model, self._data, eye, targets.ravel(), _OPAQUE, True, body, geoms, hits, None, count, 1e6
        )
        seen = (hits < 0.0) | (hits > 0.999)
        visible = float(seen.sum()) / len(world)
        in_front = depth > 0.01
        # The projected bounding box of the samples, grown back from the inset; shapes fill about 0.7 of it.
        spread = float(np.ptp(u[in_front])) * float(np.ptp(v[in_front]))
        pixels = visible * 0.7 * spread / _INSET**2 * height * height
        return View(visible, bearing, elevation, distance, pixels)


def _item_points(width: float, depth: float, height: float) -> NDArray[np.float64]:
    """The centre, the middles of the faces, and four points around the upper rim."""
    x, y, z = (_INSET * s / 2 for s in (width, depth, height))
    middles = [(0, 0, 0), (x, 0, 0), (-x, 0, 0), (0, y, 0), (0, -y, 0), (0, 0, z), (0, 0, -z)]
    rim = [(0.7 * sx * x, 0.7 * sy * y, 0.7 * z) for sx in (1, -1) for sy in (1, -1)]
    return np.array([*middles, *rim], dtype=np.float64)


def _furniture_points(width: float, depth: float, height: float) -> NDArray[np.float64]:
    """The centre, a grid on the top, and the lower half of the front and the sides."""
    x, y = _INSET * width / 2, _INSET * depth / 2
    top = [(sx * x, sy * y, height * 0.98) for sx in (-1, 0, 1) for sy in (-1, 0, 1)]
    low = [(x, 0, height / 3), (-x, 0, height / 3), (0, y, height / 3), (0, -y, height / 3)]
    return np.array([(0, 0, height / 2), *top, *low], dtype=np.float64)
