"""Routes through a synthetic city, as records of `route_infos.json`."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

from rllib_vlm.errors import DataError
from rllib_vlm.sims.streetview.city_plan import Corner, Plan, Point, Wall, heading_deg
from rllib_vlm.sims.streetview.geo import compass_word, wrapped_deg
from rllib_vlm.sims.streetview.routes import Milestone, format_milestones

_CORNERS = (1, 3)  # intersections of a route
_FAR_M = 24.0  # between start or destination and the nearest intersection of the route
_STRAIGHT_ON = 0.3  # weight of going straight on, against 1 of each turn
_TRIES = 400  # for each route


def make_routes(plan: Plan, count: int, rng: random.Random) -> list[dict[str, Any]]:
    """`count` routes, no two alike.

    Raises:
        DataError: the city is too small for so many.
    """
    records: dict[tuple[Any, ...], dict[str, Any]] = {}
    for _ in range(_TRIES * count):
        drawn = _draw(plan, rng)
        if drawn is not None and drawn[0] not in records:
            records[drawn[0]] = drawn[1]
        if len(records) == count:
            return list(records.values())
    raise DataError(f"the city has {len(records)} routes, fewer than the {count} asked for")


def _draw(plan: Plan, rng: random.Random) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """A route's key and record, or None where the draw led nowhere."""
    ways = sorted(plan.along)
    before, corner = rng.choice(ways)
    starts = [p for p in plan.along[before, corner] if _far(plan, p, corner)]
    if not starts:
        return None
    start = rng.choice(starts)
    passed = [before, corner]
    for _ in range(rng.randint(*_CORNERS)):
        following = _next(plan, passed, rng)
        if following is None:
            return None
        passed.append(following)
    goal = _goal(plan, passed[-2], passed[-1], rng)
    if goal is None:
        return None
    pano, wall, house, side = goal
    places = [plan.panoramas[start], *(plan.at(c) for c in passed[1:-1]), plan.panoramas[pano]]
    milestones = []
    landmarks: list[dict[str, Any] | None] = []
    for i, (a, b) in enumerate(itertools.pairwise(places)):
        heading = round(heading_deg(a, b)) % 360
        if i == len(places) - 2:
            text: str | None = f"The destination {wall.houses[house].landmark} is on your {side}"
        else:
            text, place = _corner_landmark(plan, passed[i + 1], heading, rng)
            landmarks.append(place)
        milestones.append(Milestone(heading, compass_word(heading), text))
    lengths = [round(math.dist(a, b), 1) for a, b in itertools.pairwise(places)]
    record = {
        "dest_place": _place(plan, wall.houses[house].landmark, wall.middle(house), places[-1]),
        "start_place": _place(plan, "", places[0], places[0]),
        "route_results": {
            "geocode_list": [list(plan.geocode(p)) for p in places[1:]],
            "distance_list": lengths,
            "distance": round(sum(lengths), 1),
            "landmark_list": landmarks,
            "n_landmarks": sum(place is not None for place in landmarks),
        },
        "init_heading": 0,
        "instruction": "",
        "milestone_info": format_milestones(milestones),
    }
    return (start, *passed, wall.houses[house].landmark), record


def _far(plan: Plan, pano: str, corner: Corner) -> bool:
    return math.dist(plan.panoramas[pano], plan.at(corner)) >= _FAR_M


def _next(plan: Plan, passed: list[Corner], rng: random.Random) -> Corner | None:
    """The corner after the last one: never one that has been passed, and rather around a bend."""
    here = passed[-1]
    came = heading_deg(plan.at(passed[-2]), plan.at(here))
    options = [c for c in sorted(plan.streets[here]) if c not in passed]
    if not options:
        return None
    bends = [abs(wrapped_deg(heading_deg(plan.at(here), plan.at(c)) - came)) for c in options]
    return rng.choices(options, [1.0 if bend > 45 else _STRAIGHT_ON for bend in bends])[0]


def _goal(plan: Plan, a: Corner, b: Corner, rng: random.Random) -> tuple[str, Wall, int, str] | None:
    """A landmark between a and b: the panorama before it, where it is, and on which hand."""
    found = []
    for side, way in (("right", (a, b)), ("left", (b, a))):
        wall = plan.sides[way]
        for house in range(1, len(wall.houses) - 1):
            if wall.houses[house].landmark:
                front = wall.middle(house)
                pano = min(plan.along[a, b], key=lambda p: math.dist(plan.panoramas[p], front))
                if _far(plan, pano, a):
                    found.append((pano, wall, house, side))
    return rng.choice(found) if found else None


def _corner_landmark(
    plan: Plan, corner: Corner, heading: float, rng: random.Random
) -> tuple[str | None, dict[str, Any] | None]:
    """What is seen at an intersection on the left or the right, rather ahead than behind."""
    here = plan.at(corner)
    found = []
    for other in sorted(plan.streets[corner]):
        for wall, house in ((plan.sides[corner, other], 0), (plan.sides[other, corner], -1)):
            if wall.houses[house].landmark:
                house %= len(wall.houses)
                bearing = wrapped_deg(heading_deg(here, wall.middle(house)) - heading)
                if 15 < abs(bearing) < 110:
                    found.append((bearing, wall, house))
    if not found:
        return None, None
    bearing, wall, house = rng.choice(found)
    name = wall.houses[house].landmark
    return f"{name} is on your {'right' if bearing > 0 else 'left'}", _place(
        plan, name, wall.middle(house), here
    )


def _place(plan: Plan, name: str, at: Point, pano_at: Point) -> dict[str, Any]:
    return {
        "name": name,
        "geocode": list(plan.geocode(at)),
        "relocated_geocode": list(plan.geocode(pano_at)),
        "place_types": [name.split()[-1].lower()] if name else [],
    }
