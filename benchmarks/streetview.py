"""How fast streets are: 16 environments with pictures, against V-IRL's way of rendering, and what a step weighs."""

from __future__ import annotations

import io
import math
import statistics
import time
from typing import Any

import numpy as np
import PIL.Image

from rllib_vlm.sims.streetview.city import make_city
from rllib_vlm.sims.streetview.city_drawing import CityPainter
from rllib_vlm.sims.streetview.env import StreetView
from rllib_vlm.sims.streetview.imagery import CachedSource
from rllib_vlm.sims.streetview.panorama import GAP, ORIGINAL_VIEWS

_ENVIRONMENTS, _RESOLUTION, _STEPS, _REPEATS = 16, 224, 320, 5
_ORIGINAL_SIDE = 640  # of a view before it is made smaller
_CITY = {"style": "nyc", "routes": 20, "seed": 0}
_SMALL, _LARGE = 512, 1024  # columns of a panorama; published ones have more, which favours us further


def _play(width: int) -> tuple[list[float], int]:
    """Steps per CPU-second of one core, and bytes of a step.

    The city is drawn before; each repeat begins with no panorama decoded. Environments share what they decode.
    """
    streets = [
        StreetView(city={**_CITY, "width": width}, resolution=_RESOLUTION) for _ in range(_ENVIRONMENTS)
    ]
    source = streets[0].settings.data.source
    assert isinstance(source, CachedSource)
    rates, size = [], 0
    for repeat in range(_REPEATS + 1):  # the first one draws
        source.clear()
        seed = 0
        start = time.process_time()
        for step in range(_STEPS):
            street = streets[step % _ENVIRONMENTS]
            if step < _ENVIRONMENTS or street.over:
                street.reset(seed=seed)
                seed += 1
            observation, *_, info = street.turn(street.expert()().actions)
            size = max(size, observation["images"].nbytes + len(observation["text"]) + len(repr(info)))
        if repeat:
            rates.append(_STEPS / (time.process_time() - start))
    return rates, size


def _as_the_original(width: int) -> list[float]:
    """The same of V-IRL's way, in our own words: twice a step, decode it all and remap it four times.

    With OpenCV where it is installed, as the original does; else with numpy and linear interpolation.
    """
    city = make_city("nyc", 20, 0, width)
    painter = CityPainter(city.plan, width)
    names = list(city.plan.panoramas)[: 2 * _REPEATS]
    files = [city.draw(painter, name) for name in names]
    rates = []
    for repeat in range(_REPEATS):
        start = time.process_time()
        for step in range(4):
            for _ in range(2):
                grid = PIL.Image.new("RGB", (2 * _RESOLUTION + GAP,) * 2)
                for k, view in enumerate(ORIGINAL_VIEWS):
                    panorama = np.asarray(
                        PIL.Image.open(io.BytesIO(files[2 * repeat + step % 2])).convert("RGB")
                    )
                    picture = PIL.Image.fromarray(_remap(panorama, 30.0 * step + view))
                    small = picture.resize((_RESOLUTION, _RESOLUTION))
                    grid.paste(small, ((k % 2) * (_RESOLUTION + GAP), (k // 2) * (_RESOLUTION + GAP)))
                np.asarray(grid)
        rates.append(4 / (time.process_time() - start))
    return rates


def _remap(panorama: np.ndarray[Any, Any], heading: float) -> np.ndarray[Any, Any]:
    height, width = panorama.shape[:2]
    offset = (np.arange(_ORIGINAL_SIDE) - (_ORIGINAL_SIDE - 1) / 2) / (_ORIGINAL_SIDE / 2)
    x, y = np.meshgrid(offset, offset)
    longitude = np.arctan2(x, 1.0) + math.radians(heading)
    latitude = np.arcsin(y / np.sqrt(x * x + y * y + 1))
    column = (longitude / (2 * np.pi) % 1.0) * (width - 1)
    row = (latitude / np.pi + 0.5) * (height - 1)
    try:
        import cv2
    except ImportError:
        left, above = np.floor(column).astype(int), np.floor(row).astype(int)
        a, b = (column - left)[..., None], (row - above)[..., None]
        right, below = (left + 1) % width, np.minimum(above + 1, height - 1)
        top = panorama[above, left] * (1 - a) + panorama[above, right] * a
        bottom = panorama[below, left] * (1 - a) + panorama[below, right] * a
        return (top * (1 - b) + bottom * b + 0.5).astype(np.uint8)
    maps = column.astype(np.float32), row.astype(np.float32)
    return np.asarray(cv2.remap(panorama, *maps, cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP))


def run() -> dict[str, Any]:
    """The headline figure is steps per CPU-second of one core, all rendering and decoding in it, medians of 5."""
    ours, size = _play(_SMALL)
    ours_large, _ = _play(_LARGE)
    theirs, theirs_large = _as_the_original(_SMALL), _as_the_original(_LARGE)
    rate, rate_large = statistics.median(ours), statistics.median(ours_large)
    try:
        import cv2

        remapped_by = f"OpenCV {cv2.__version__}"
    except ImportError:
        remapped_by = "numpy"
    return {
        "name": "streetview",
        "value": round(rate, 1),
        "unit": f"steps per CPU-second and core, {_ENVIRONMENTS} environments, four {_RESOLUTION}x{_RESOLUTION} views",
        "details": {
            f"panoramas of {_SMALL}: steps, times the original's way": round(
                rate / statistics.median(theirs), 1
            ),
            f"panoramas of {_LARGE}: steps per CPU-second": round(rate_large, 1),
            f"panoramas of {_LARGE}: steps, times the original's way": round(
                rate_large / statistics.median(theirs_large), 1
            ),
            "the original's way remapped by": remapped_by,
            "bytes of a stored step": size,
            "slowest of the repeats": round(min(ours), 1),
            "repeats": _REPEATS,
        },
    }
