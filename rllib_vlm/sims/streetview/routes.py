"""Routes as V-IRL publishes them: `route_infos.json`, `[[route, ...], count]`.

Of a route the simulator needs where it starts, the places it passes, and `milestone_info`: one block per
place, the heading that leads there and the landmark that is seen there. Everything else is let through unread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rllib_vlm.errors import DataError, quote
from rllib_vlm.sims.streetview.geo import Geocode

# A block ends at a line that holds nothing but its bracket, so a landmark may have brackets in its name.
_BLOCK = re.compile(r"\{\s*\n(.*?)\n\s*\}", re.DOTALL)
_HEADING = re.compile(r"\s*(\d{1,9})\s*\(([^()]+)\)\s*")

Degrees = Annotated[float, Field(allow_inf_nan=False)]
Place2 = tuple[Degrees, Degrees]


@dataclass(frozen=True, slots=True)
class Milestone:
    """One place on the way: an intersection, or at the end the destination."""

    heading: int  # degrees, of the way that leads there
    direction: str  # the same as a compass word
    landmark: str | None  # what is seen there: "Lucky Diner is on your right"


@dataclass(frozen=True, slots=True)
class Route:
    """One route, checked."""

    name: str  # of the destination, for people
    start: Geocode
    geocodes: tuple[Geocode, ...]  # intersections, then the destination
    init_heading: float  # degrees; 0 asks for a random one
    milestone_info: str

    def milestones(self, *, original: bool = False) -> tuple[Milestone, ...]:
        """One per place of `geocodes`.

        Args:
            original: split at every closing bracket, as V-IRL does, also at one inside a landmark's name.

        Raises:
            DataError: a block is broken, or there are more or fewer than places.
        """
        return _milestones(self, original)


class _Place(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str = ""
    relocated_geocode: Place2 | None = None
    geocode: Place2 | None = None


class _Results(BaseModel):
    model_config = ConfigDict(extra="allow")
    geocode_list: list[Place2] = Field(min_length=1)


class _Record(BaseModel):
    model_config = ConfigDict(extra="allow")
    dest_place: _Place = _Place()
    start_place: _Place
    route_results: _Results
    init_heading: Degrees = 0
    milestone_info: str


def parse_route(record: Any) -> Route:
    """A route from its JSON record.

    Raises:
        DataError: with every field that is missing or of the wrong kind.
    """
    try:
        checked = _Record.model_validate(record)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'route'}: {e['msg']}" for e in error.errors()]
        raise DataError("; ".join(problems)) from error
    start = checked.start_place.relocated_geocode or checked.start_place.geocode
    if start is None:
        raise DataError("start_place has neither relocated_geocode nor geocode")
    return Route(
        name=checked.dest_place.name,
        start=start,
        geocodes=tuple(checked.route_results.geocode_list),
        init_heading=checked.init_heading,
        milestone_info=checked.milestone_info,
    )


def read_records(path: Path) -> list[Any]:
    """The unchecked records of a `route_infos.json`.

    Raises:
        DataError: the file is missing, no JSON, or not `[[route, ...], count]`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: {error}") from error
    if not (isinstance(content, list) and content and isinstance(content[0], list)):
        raise DataError(f"{path}: not [[route, ...], count] but a {type(content).__name__}")
    return list(content[0])


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes `[[route, ...], count]`."""
    path.write_text(json.dumps([list(records), len(records)]), encoding="utf-8")


def format_milestones(milestones: Sequence[Milestone]) -> str:
    """`milestone_info` for milestones, as `Route.milestones` reads it."""
    blocks = []
    for milestone in milestones:
        lines = [f'"to_next_intersection_heading": "{milestone.heading} ({milestone.direction})"']
        if milestone.landmark is not None:
            lines.insert(0, f'"landmarks": "{milestone.landmark}"')
        blocks.append("{\n" + ",\n".join(lines) + "\n}")
    return "\n".join(blocks)


def _milestones(route: Route, original: bool) -> tuple[Milestone, ...]:
    text = route.milestone_info
    blocks = text.split("}") if original else _BLOCK.findall(text)
    found: list[Milestone] = []
    for block in blocks:
        fields = _fields(block)
        if not fields:
            continue
        heading = fields.get("to_next_intersection_heading")
        match = _HEADING.match(heading) if heading is not None else None
        if match is None:
            raise DataError(
                f"milestone {len(found) + 1} has no to_next_intersection_heading such as '177 (south)' "
                f"but {heading if heading is None else quote(heading)}"
            )
        found.append(Milestone(int(match[1]), match[2], fields.get("landmarks")))
    if len(found) != len(route.geocodes):
        raise DataError(f"{len(found)} milestones for {len(route.geocodes)} places in geocode_list")
    return tuple(found)


def _fields(block: str) -> dict[str, str]:
    """`"key": "value",` line by line; lines without a colon mean nothing."""
    fields = {}
    for line in block.strip().lstrip("{").strip().splitlines():
        key, colon, value = line.strip().rstrip(",").partition(":")
        if colon:
            fields[key.strip().strip("\"'")] = value.strip().strip("\"'")
    return fields
