"""Draws a synthetic city's panoramas: one ray per column to the nearest house, then every pixel of the column.

A pixel above the horizon shows the house its column meets, at the height the ray has there, or the sky; one below
shows the ground where the ray comes down. Signs are pictures with letters, laid on the houses' fronts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures
from PIL import ImageDraw, ImageFont

from rllib_vlm.sims.streetview.city_plan import Corner, Plan, Point
from rllib_vlm.sims.streetview.city_style import KINDS, RGB
from rllib_vlm.types import Image

_CAMERA_M = 2.5
_SIGHT_M = 160.0
_ROAD_M = 6.0  # from the middle to the kerb
_SIGN_FROM_M, _SIGN_TO_M, _FRONT_M = 3.2, 6.6, 3.0
_SIGN_PIXELS_PER_M = 16.0
_READABLE_M = 80.0  # farther fronts are like their neighbours
_HAZE_M = 260.0  # distance over which houses fade into the horizon

_SHOWN_DEG = (
    50.0  # above and below the horizon; beyond, a panorama repeats its last row (views show 45 degrees)
)
_GROUND_M = 48.0  # ground farther away is a line of pixels, and road

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class _Hits:
    """What each column of a panorama meets."""

    distance: Array  # [W] metres, inf where nothing
    wall: NDArray[np.intp]  # [W]
    along: Array  # [W] metres from the wall's beginning


class CityPainter:
    """Draws panoramas of one city.

    Args:
        plan: the city.
        width: columns of a panorama; it has half as many rows.
    """

    def __init__(self, plan: Plan, width: int) -> None:
        self.plan = plan
        self.width = width
        self._a = np.array([wall.a for wall in plan.walls])
        self._b = np.array([wall.b for wall in plan.walls])
        self._middles = (self._a + self._b) / 2
        self._counts = np.array([len(wall.houses) for wall in plan.walls])
        self._widths = np.linalg.norm(self._b - self._a, axis=1).astype(np.float32) / self._counts.astype(
            np.float32
        )
        self._edges = sorted(plan.streets.edges)
        ends: list[tuple[Corner, Corner]] = self._edges
        self._starts = np.array([plan.at(a) for a, _ in ends])
        self._ends = np.array([plan.at(b) for _, b in ends])
        elevation = (0.5 - (np.arange(width // 2) + 0.5) / (width // 2)) * math.pi
        shown = np.flatnonzero(np.abs(elevation) < math.radians(_SHOWN_DEG))
        self._margins = (int(shown[0]), width // 2 - 1 - int(shown[-1]))
        self._tangent = np.tan(elevation[shown]).astype(np.float32)

    def draw(self, at: Point, rotation: float) -> Image:
        """`[width / 2, width, 3]` RGB: heading h stands at the column (h + rotation) / 360 * width."""
        heading = np.radians((np.arange(self.width) + 0.5) / self.width * 360.0 - rotation)
        ways = np.stack([np.sin(heading), np.cos(heading)], axis=-1)
        hits = self._cast(np.asarray(at), ways)
        canvas = self._sky()
        self._ground(canvas, np.asarray(at), ways)
        self._houses(canvas, hits)
        pixels = np.clip(canvas, 0, 255).astype(np.uint8)
        return np.pad(pixels, (self._margins, (0, 0), (0, 0)), mode="edge")

    def _sky(self) -> Array:
        high, low = (np.array(c, np.float32) for c in self.plan.style.sky)
        share = np.clip(self._tangent, 0, 1.5)[:, None] / 1.5
        return np.repeat((low + share * (high - low))[:, None], self.width, axis=1)

    def _cast(self, at: Array, ways: Array) -> _Hits:
        """The nearest wall in each direction: a ray and a segment meet where two linear equations hold."""
        reach = np.linalg.norm(self._b - self._a, axis=1) / 2 + _SIGHT_M
        near = np.flatnonzero(np.linalg.norm(self._middles - at, axis=1) < reach)
        along = self._b[near] - self._a[near]
        start = self._a[near] - at
        cross = ways[:, :1] * along[:, 1] - ways[:, 1:] * along[:, 0]  # [W, walls]
        cross = np.where(np.abs(cross) < 1e-9, 1e-9, cross)
        distance = (start[:, 0] * along[:, 1] - start[:, 1] * along[:, 0]) / cross
        share = (start[:, 0] * ways[:, 1:] - start[:, 1] * ways[:, :1]) / cross
        seen = np.where((distance > 0.1) & (share >= 0) & (share < 1), distance, np.inf)
        first = seen.argmin(axis=1)
        rows = np.arange(len(ways))
        length = np.linalg.norm(along, axis=1)
        return _Hits(seen[rows, first], near[first], share[rows, first] * length[first])

    def _ground(self, canvas: Array, at: Array, ways: Array) -> None:
        style = self.plan.style
        below = np.flatnonzero(self._tangent < 0)
        canvas[below] = style.road
        reach = _CAMERA_M / -self._tangent[below]  # [rows] metres
        below, reach = below[reach < _GROUND_M], reach[reach < _GROUND_M]
        here = reach[:, None, None] * ways.astype(np.float32)  # [rows, W, 2] from the camera
        road = np.zeros(here.shape[:2], bool)
        lines = np.zeros(here.shape[:2], bool)
        for start, end in self._streets_near(at):
            length = float(np.linalg.norm(end - start))
            x, y = (end - start).astype(np.float32) / np.float32(length)
            offset = at - start
            forward = here[..., 0] * x + here[..., 1] * y + np.float32(offset[0] * x + offset[1] * y)
            aside = np.abs(here[..., 0] * y - here[..., 1] * x + np.float32(offset[0] * y - offset[1] * x))
            free = length / 2 - np.abs(forward - length / 2)  # metres from the nearer corner
            inside = aside < _ROAD_M
            road |= inside & (free > -_ROAD_M)
            lines |= (aside < 0.18) & (free > 12) & (forward % 6 < 3.5)
            crossing = inside & (free > 7) & (free < 10)
            lines[crossing] = aside[crossing] % 1.2 < 0.6
        ground = np.empty((*here.shape[:2], 3), np.float32)
        ground[:] = style.pavement
        ground[road] = style.road
        ground[lines & road] = style.line
        canvas[below] = ground

    def _streets_near(self, at: Array) -> list[tuple[Array, Array]]:
        """Ends of the streets that come within sight on the ground."""
        way = self._ends - self._starts
        share = ((at - self._starts) * way).sum(axis=1) / (way * way).sum(axis=1)
        nearest = self._starts + np.clip(share, 0, 1)[:, None] * way
        close = np.linalg.norm(nearest - at, axis=1) < _GROUND_M
        return [(self._starts[i], self._ends[i]) for i in np.flatnonzero(close)]

    def _houses(self, canvas: Array, hits: _Hits) -> None:
        columns = np.flatnonzero(np.isfinite(hits.distance))
        if not len(columns):
            return
        style, walls = self.plan.style, self.plan.walls
        distance, along = hits.distance[columns].astype(np.float32), hits.along[columns].astype(np.float32)
        counts = self._counts[hits.wall[columns]]
        widths = self._widths[hits.wall[columns]]
        numbers = np.minimum((along / widths).astype(int), counts - 1)
        houses = [walls[w].houses[n] for w, n in zip(hits.wall[columns], numbers, strict=True)]
        tops = np.array([house.height for house in houses], np.float32)
        within = along - numbers * widths  # metres from the house's beginning
        height = _CAMERA_M + distance * self._tangent[:, None]  # [H, columns]
        solid = (height >= 0) & (height < tops)

        colour = np.array([style.walls[house.wall] for house in houses], np.float32)
        colour *= self._shading(hits.wall[columns])[:, None]
        face = np.repeat(colour[None], len(height), axis=0)
        every, up = style.window_every
        across = (within % every) / every
        level = (height - _FRONT_M) % up / up
        panes = (np.abs(across - 0.5) < 0.26) & (np.abs(level - 0.5) < 0.3)
        face[panes & (height > _FRONT_M) & (height < tops - 1.0)] = style.window
        face[(height > tops - 0.7) & solid] *= np.float32(0.7)  # the cornice
        edges = np.minimum(within, widths - within) < 0.12
        face[:, edges] *= np.float32(0.75)
        self._fronts(face, height, within, widths, [house.landmark for house in houses], distance)
        haze = np.clip(distance / _HAZE_M, 0, 0.6)[None, :, None]
        face += haze * (np.array(style.sky[1], np.float32) - face)
        shown = np.zeros(canvas.shape[:2], bool)
        shown[:, columns] = solid
        canvas[shown] = face[solid]

    def _shading(self, walls: NDArray[np.intp]) -> Array:
        """Walls that look away from the morning sun are darker."""
        along = self._b[walls] - self._a[walls]
        along /= np.linalg.norm(along, axis=1, keepdims=True)
        lit = (along[:, 1] * 0.8 + along[:, 0] * 0.6 + 1) / 2
        return np.asarray(self.plan.style.shade + (1 - self.plan.style.shade) * lit, np.float32)

    def _fronts(
        self, face: Array, height: Array, within: Array, widths: Array, names: list[str], distance: Array
    ) -> None:
        """Shop fronts and signs of the landmarks in sight."""
        named = np.array(names)
        low = height[:, int(distance.argmin())]  # rows that reach above signs even nearby show none
        rows = np.flatnonzero(low < _SIGN_TO_M)
        if not len(rows):
            return
        first = int(rows[0])
        for name in sorted(set(names) - {""}):
            columns = np.flatnonzero(named == name)
            if distance[columns].min() > _READABLE_M:
                continue
            kind = np.array(KINDS[name.split()[-1]], np.float32)
            up = height[first:, columns]
            front = face[first:, columns]
            front[up < _FRONT_M] = 0.55 * kind + 0.45 * 255
            door = np.abs(within[columns] / widths[columns] - 0.5) < 0.12
            front[(up < 2.3) & door] = kind * 0.4
            front[(up >= _FRONT_M) & (up < _FRONT_M + 0.2)] = kind * 0.6
            # Letters read from the house's end to its beginning: so it stands to who looks at it from the street.
            x = 1 - within[columns] / widths[columns]
            pixels = self.width / (2 * math.pi * float(distance[columns].mean()))  # per metre
            level = max(0, round(math.log2(max(_SIGN_PIXELS_PER_M / pixels, 1.0))))
            width_m = round(float(widths[columns[0]]), 3)
            sign = _sign(name, KINDS[name.split()[-1]], self.plan.style.sign, width_m, level)
            y = (_SIGN_TO_M - up) / (_SIGN_TO_M - _SIGN_FROM_M)
            on = (y >= 0) & (y < 1)
            row = np.clip((y * sign.shape[0]).astype(int), 0, sign.shape[0] - 1)
            column = np.clip((x * sign.shape[1]).astype(int), 0, sign.shape[1] - 1)
            front[on] = sign[row, column][on]
            face[first:, columns] = front


@lru_cache(maxsize=4096)
def _sign(name: str, ground: RGB, letters: RGB, width_m: float, level: int) -> Image:
    """A sign `[H, W, 3]` with the name in two lines, halved `level` times so that it does not flicker from afar."""
    height = round((_SIGN_TO_M - _SIGN_FROM_M) * _SIGN_PIXELS_PER_M)
    width = round(width_m * _SIGN_PIXELS_PER_M)
    picture = Pictures.new("RGB", (width, height), ground)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((1, 1, width - 2, height - 2), outline=letters, width=2)
    for line, word in enumerate(name.upper().split()):
        size = height // 2
        while size > 6 and pen.textlength(word, font=_font(size)) > width - 10:
            size -= 1
        pen.text(
            (width / 2, height * (0.27 + 0.47 * line)), word, fill=letters, font=_font(size), anchor="mm"
        )
    for _ in range(min(level, 4)):
        picture = picture.reduce(2)
    return np.asarray(picture)


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that pictures do not depend on the machine's."""
    return ImageFont.load_default(size)
