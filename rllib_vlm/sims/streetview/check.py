"""Looks a data set through and lists everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rllib_vlm.errors import DataError
from rllib_vlm.sims.streetview.dataset import ROUTES, read_splits
from rllib_vlm.sims.streetview.geo import COMPASS, PanoramaIndex
from rllib_vlm.sims.streetview.imagery import FOLDER, FolderSource
from rllib_vlm.sims.streetview.mapping import read_mapping
from rllib_vlm.sims.streetview.routes import parse_route, read_records

Progress = Callable[[int, int], None]


def check_folder(folder: Path, progress: Progress = lambda done, total: None) -> list[str]:
    """Every problem of the data set in `folder` and of the sets its `splits.json` names; none if it is sound.

    Args:
        folder: of the data set.
        progress: called with routes and panoramas looked at, and how many there are.
    """
    problems: list[str] = []
    records = _attempt(lambda: read_records(folder / ROUTES), problems) or []
    mapping = _attempt(lambda: read_mapping(folder), problems) or {}
    index = PanoramaIndex(mapping)
    panoramas = sorted(set(mapping.values()))
    total, source = len(records) + len(panoramas), FolderSource(folder / FOLDER)
    if not records and not problems:
        problems.append(f"{ROUTES} has no routes")
    for number, record in enumerate(records):
        problems += [f"route {number}: {problem}" for problem in _route_problems(record, index)]
        progress(number + 1, total)
    for number, pano_id in enumerate(panoramas):
        problems += source.problems(pano_id)
        progress(len(records) + number + 1, total)
    _, others = _attempt(lambda: read_splits(folder, len(records)), problems) or ({}, {})
    for other in others.values():
        problems += [f"{other}: {problem}" for problem in check_folder(folder / other, progress)]
    return problems


def _attempt(read: Callable[[], Any], problems: list[str]) -> Any:
    try:
        return read()
    except DataError as error:
        problems.append(str(error))
        return None


def _route_problems(record: Any, index: PanoramaIndex) -> list[str]:
    try:
        route = parse_route(record)
        milestones = route.milestones()
    except DataError as error:
        return [str(error)]
    problems = []
    if not 0 <= route.init_heading < 360:
        problems.append(f"init_heading {route.init_heading:g} is not from 0 to below 360")
    for number, milestone in enumerate(milestones, 1):
        if not 0 <= milestone.heading < 360:
            problems.append(f"milestone {number}: heading {milestone.heading} is not from 0 to below 360")
        if milestone.direction not in COMPASS:
            problems.append(f"milestone {number}: {milestone.direction!r} is not one of {', '.join(COMPASS)}")
        if milestone.landmark is not None and "}" in milestone.landmark:
            problems.append(
                f"milestone {number}: a '}}' in {milestone.landmark!r} breaks the block in mode parity"
            )
    for number, place in enumerate((route.start, *route.geocodes)):
        if index.nearest(place) is None:
            what = f"place {number} of the way" if number else "start"
            problems.append(f"no panorama within {index.radius_m:g} m of the {what} at {place}")
    return problems
