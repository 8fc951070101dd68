"""Synthetic cities with V-IRL's data layout: in memory, drawn as they are seen, or as a folder.

A city, its routes and its panoramas follow from (style, routes, seed, width) alone.
"""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pictures

from rllib_vlm.errors import DataError
from rllib_vlm.files import write_json
from rllib_vlm.sims.streetview.city_drawing import CityPainter
from rllib_vlm.sims.streetview.city_plan import Plan, make_plan
from rllib_vlm.sims.streetview.city_routes import make_routes
from rllib_vlm.sims.streetview.city_style import STYLES as STYLES
from rllib_vlm.sims.streetview.dataset import ROUTES, SPLITS_FILE, DataSet
from rllib_vlm.sims.streetview.geo import PanoramaIndex
from rllib_vlm.sims.streetview.imagery import FACES, FOLDER, CachedSource, decode, face_files
from rllib_vlm.sims.streetview.mapping import JSON
from rllib_vlm.sims.streetview.mapping import write_json as write_mapping
from rllib_vlm.sims.streetview.panorama import GridRenderer, Panorama
from rllib_vlm.sims.streetview.routes import parse_route, write_records
from rllib_vlm.types import Image

LAYOUTS = ("equirectangular", "views")
CITY_DEFAULTS: dict[str, Any] = {
    "style": "nyc", "routes": 64, "seed": 0, "width": 512,
}  # fmt: skip
CITY_MOST_ROUTES = 20_000
VISUAL_OOD = "visual_ood"
_SHARES = {"heldout": 0.1, "rule_ood": 0.1}  # of the routes; the rest is for training
_QUALITY = 88  # of JPEGs
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class City:
    """A city before anything is drawn."""

    style: str
    seed: int
    width: int
    plan: Plan
    records: list[dict[str, Any]]

    @property
    def splits(self) -> dict[str, list[int]]:
        """Training, held-out and rule-OOD routes: parts of the list, which is in random order."""
        splits, end = {}, len(self.records)
        for name, share in _SHARES.items():
            begin = end - max(1, round(share * len(self.records)))
            splits[name] = list(range(begin, end))
            end = begin
        return {"train": list(range(end)), **splits}

    def draw(self, painter: CityPainter, pano_id: str) -> bytes:
        """A panorama as JPEG."""
        pixels = painter.draw(self.plan.panoramas[pano_id], self.rotation(pano_id))
        return _jpeg(pixels)

    def rotation(self, pano_id: str) -> float:
        """How far a panorama is turned: anywhere, as the cars' cameras are."""
        return round(random.Random(f"{self.seed}/{pano_id}").uniform(0, 360), 3)


def make_city(style: str, routes: int, seed: int, width: int = 512) -> City:
    """Plans a city large enough for so many routes."""
    rng = random.Random(f"{style}/{routes}/{seed}")
    size = min(max(math.ceil(math.sqrt(routes / 8)) + 2, 4), 12)
    plan = make_plan(STYLES[style], size, rng)
    return City(style, seed, width, plan, make_routes(plan, routes, rng))


def other_style(style: str) -> str:
    """What visual OOD looks like."""
    names = sorted(STYLES)
    return names[(names.index(style) + 1) % len(names)]


def ood_routes(routes: int) -> int:
    """Routes of the visual-OOD part beside so many."""
    return max(10, routes // 10)


class CitySource:
    """Draws a city's panoramas when they are first asked for, and keeps them as the files would hold them."""

    def __init__(self, city: City) -> None:
        self._city = city
        self._painter = CityPainter(city.plan, city.width)
        self._drawn: dict[str, bytes] = {}

    def load(self, pano_id: str, least_width: int) -> Panorama:
        """See `PanoramaSource.load`."""
        if pano_id not in self._city.plan.panoramas:
            raise DataError(f"the city has no panorama {pano_id!r}")
        if pano_id not in self._drawn:
            self._drawn[pano_id] = self._city.draw(self._painter, pano_id)
        pixels = decode(self._drawn[pano_id], (least_width, least_width // 2), pano_id)
        return Panorama(pixels, self._city.rotation(pano_id))


@lru_cache(maxsize=8)
def build_city(style: str, routes: int, seed: int, width: int) -> DataSet:
    """A city in memory, and beside it the other style for visual OOD; simulators of one process share them."""
    city = make_city(style, routes, seed, width)
    other = partial(_visual_ood, other_style(style), ood_routes(routes), seed, width)
    return _data_set(city, city.splits, {VISUAL_OOD: other})


@lru_cache(maxsize=8)
def _visual_ood(style: str, routes: int, seed: int, width: int) -> DataSet:
    return _data_set(make_city(style, routes, seed, width), {}, {})


def _data_set(
    city: City, splits: Mapping[str, list[int]], others: Mapping[str, Callable[[], DataSet]]
) -> DataSet:
    plan = city.plan
    return DataSet(
        name=f"city {city.style}, seed {city.seed}",
        routes=[parse_route(record) for record in city.records],
        index=PanoramaIndex({plan.geocode(at): name for name, at in plan.panoramas.items()}),
        source=CachedSource(CitySource(city)),
        splits=splits,
        others=others,
    )


def write_city(
    folder: Path, *, style: str, routes: int, seed: int, layout: str, width: int, progress: Progress
) -> None:
    """Writes a city, and in a folder of its own the other style in the other layout for visual OOD.

    Args:
        folder: to make; must not hold anything yet.
        style: see `STYLES`.
        routes: of the city; the visual-OOD part has a tenth, or ten.
        seed: of everything.
        layout: "equirectangular" or "views".
        width: of a panorama, pixels.
        progress: called with panoramas drawn and to be drawn.

    Raises:
        DataError: the folder is not empty, or the city has no room for so many routes.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not an empty folder; choose another name")
    city = make_city(style, routes, seed, width)
    other = make_city(other_style(style), ood_routes(routes), seed, width)
    total = len(city.plan.panoramas) + len(other.plan.panoramas)
    done = 0

    def drawn() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    _write(folder, city, layout, {**city.splits, VISUAL_OOD: VISUAL_OOD}, drawn)
    other_layout = LAYOUTS[1 - LAYOUTS.index(layout)]
    _write(folder / VISUAL_OOD, other, other_layout, None, drawn)


def _write(
    folder: Path, city: City, layout: str, splits: Mapping[str, Any] | None, drawn: Callable[[], None]
) -> None:
    views = folder / FOLDER
    views.mkdir(parents=True, exist_ok=True)
    painter = CityPainter(city.plan, city.width)
    side = city.width // 4
    renderer = GridRenderer(side)
    for name, at in city.plan.panoramas.items():
        if layout == "views":
            panorama = Panorama(painter.draw(at, 0.0), 0.0)
            for heading, file in zip(FACES, face_files(views, name), strict=True):
                file.write_bytes(_jpeg(renderer.render(panorama, [heading] * 4)[:side, :side]))
        else:
            (views / f"{name}.jpg").write_bytes(city.draw(painter, name))
            latitude, longitude = city.plan.geocode(at)
            metadata = {"rotation": city.rotation(name), "lat": latitude, "lng": longitude}
            (views / f"{name}.metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
        drawn()
    write_mapping(folder / JSON, {city.plan.geocode(at): name for name, at in city.plan.panoramas.items()})
    if splits is not None:
        write_json(folder / SPLITS_FILE, splits)
    write_records(folder / ROUTES, city.records)  # last: a folder with routes is whole


def _jpeg(pixels: Image) -> bytes:
    buffer = io.BytesIO()
    Pictures.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="JPEG", quality=_QUALITY)
    return buffer.getvalue()
