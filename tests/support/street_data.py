"""A street of three corners, small enough to know by heart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from rllib_vlm.sims.streetview.geo import metres_per_degree
from rllib_vlm.sims.streetview.mapping import write_json
from rllib_vlm.sims.streetview.routes import write_records

ORIGIN = (40.75, -73.98)


def place(east_m: float, north_m: float) -> tuple[float, float]:
    north, east = metres_per_degree(ORIGIN[0])
    return ORIGIN[0] + north_m / north, ORIGIN[1] + east_m / east


def milestones(*blocks: tuple[str, str | None]) -> str:
    text = []
    for heading, landmark in blocks:
        lines = [f'"to_next_intersection_heading": "{heading}"']
        if landmark is not None:
            lines.insert(0, f'"landmarks": "{landmark}"')
        text.append("{\n" + ",\n".join(lines) + "\n}")
    return "\n".join(text)


def record(places: list[tuple[float, float]], text: str, init_heading: float = 0) -> dict[str, Any]:
    """A route through places in metres."""
    return {
        "dest_place": {"name": "Bank"},
        "start_place": {"name": "", "relocated_geocode": list(place(*places[0]))},
        "route_results": {"geocode_list": [list(place(*p)) for p in places[1:]], "landmark_list": []},
        "init_heading": init_heading,
        "milestone_info": text,
    }


# North for 60 m, around a corner to the east for 40 m, and on over a crossing that lies 3 m further.
BEND = record(
    [(0, 0), (0, 60), (40, 60)],
    milestones(
        ("10 (north)", "Lucky Diner is on your right"), ("90 (east)", "The destination Bank is on your left")
    ),
    init_heading=350,
)
SHORT = record(
    [(0, 0), (0, 60), (3, 60), (40, 60)],
    milestones(
        ("10 (north)", None),
        ("90 (east)", "Intersection Books is on your left"),
        ("90 (east)", "the intersection bank"),
    ),
    init_heading=200,
)


def panoramas() -> dict[tuple[float, float], str]:
    spots = [(0, n) for n in range(0, 61, 10)] + [(e, 60) for e in range(10, 41, 10)]
    return {place(*spot): f"pano_{spot[0]:03d}{spot[1]:03d}" for spot in spots}


def write_data(folder: Path, records: list[Any], *, width: int = 64) -> Path:
    views = folder / "street_views"
    views.mkdir(parents=True)
    write_records(folder / "route_infos.json", records)
    write_json(folder / "gps_pano_mapping.json", panoramas())
    for number, name in enumerate(panoramas().values()):
        pixels = np.full((width // 2, width, 3), (20 * number, 128, 255 - 20 * number), np.uint8)
        pixels[:, width // 2 :, 1] = 0
        PIL.Image.fromarray(pixels).save(views / f"{name}.jpg")
        (views / f"{name}.metadata.json").write_text(json.dumps({"rotation": 0.0}))
    return folder
