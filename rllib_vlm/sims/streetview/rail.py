"""The rail: the places a walker stops at between start and destination, and what is right at each.

A correct answer moves along it, a wrong one moves nowhere. Between two key points (start, intersections,
destination) lie interpolated way points, dropped at random and moved to the nearest panorama.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rllib_vlm.errors import DataError
from rllib_vlm.sims.streetview.geo import Geocode, PanoramaIndex, distance_m, interpolate, wrapped_deg
from rllib_vlm.sims.streetview.routes import Milestone, Route

NOTHING = "No landmarks nearby"
INTERSECTION = "You observe an intersection"
FORWARD, STOP = "forward()", "stop()"
RELATIVE = ("left", "right", "slightly left", "slightly right")

_SEGMENT_M = 5.0  # shorter segments have no way points
_APART_M = 8.0  # relocated way points stay this far from both key points
_NOTHING_AT_KEYPOINT = "No landmark nearby"  # V-IRL's spelling, at key points alone


@dataclass(frozen=True, slots=True, kw_only=True)
class RailSettings:
    """How a rail is laid."""

    original: bool = False  # V-IRL's own way, with everything that `Rail` corrects
    absolute: bool = True  # turns are compass words, not left and right
    relocation: bool = True  # every stop is at a panorama
    drop_rate: float = 0.5  # of way points
    straight_line_length: int = 5  # way points between two key points, before any is dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One stop, and the oracle's answer there."""

    place: Geocode
    heading: float
    action: str
    landmark: str
    intersection: bool
    instruction: str
    number: int  # of the instruction, from 1
    pano_id: str | None = None

    @property
    def observation(self) -> str:
        """What the oracle says is seen, as V-IRL writes it."""
        return f"{self.landmark}; {INTERSECTION if self.intersection else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rail:
    """The stops of an episode, and the instructions in words."""

    instructions: tuple[str, ...]
    nodes: tuple[Node, ...]

    @property
    def text(self) -> str:
        """The numbered instructions."""
        return "".join(f"{i}. {line}\n" for i, line in enumerate(self.instructions, 1))


def turn_word(difference_deg: float) -> str:
    """The word for a change of heading: a quarter turn or so, or less."""
    if difference_deg < -45:
        return "left"
    if difference_deg > 45:
        return "right"
    return "slightly left" if difference_deg <= 0 else "slightly right"


def snap(place: Sequence[float], index: PanoramaIndex, what: str) -> tuple[Geocode, str]:
    """The nearest panorama's place and id.

    Raises:
        DataError: none within the radius.
    """
    found = index.nearest(place)
    if found is None:
        raise DataError(f"no panorama within {index.radius_m:g} m of the {what} at {tuple(place)}")
    return found


def build_rail(
    route: Route, heading: float, index: PanoramaIndex, settings: RailSettings, rng: random.Random
) -> Rail:
    """Lays the rail of one episode.

    In order, one random number is drawn for each way point there could be, dropped or not.

    Args:
        route: where to go.
        heading: of the walker at the start, degrees.
        index: panoramas to stop at.
        settings: see there.
        rng: decides which way points are dropped.

    Raises:
        DataError: the route's milestones are broken, or a key point has no panorama.
    """
    milestones = route.milestones(original=settings.original)
    turns = _turn_words(heading, milestones, wrapped=not settings.original)
    instructions = _instructions(milestones, turns, settings.original)
    builder = _Builder(route, heading, milestones, turns, instructions, index, settings, rng)
    return Rail(instructions=instructions, nodes=tuple(builder.build()))


def _turn_words(heading: float, milestones: Sequence[Milestone], *, wrapped: bool) -> list[str]:
    headings = [heading, *(m.heading for m in milestones)]
    differences = [after - before for before, after in itertools.pairwise(headings)]
    return [turn_word(wrapped_deg(d) if wrapped else d) for d in differences]


def _landmark(milestone: Milestone, original: bool) -> str:
    if original:
        return _NOTHING_AT_KEYPOINT if milestone.landmark is None else milestone.landmark
    return NOTHING if milestone.landmark in (None, "", _NOTHING_AT_KEYPOINT) else milestone.landmark


def _instructions(milestones: Sequence[Milestone], turns: Sequence[str], original: bool) -> tuple[str, ...]:
    lines = []
    last = len(milestones) - 1
    for i, (milestone, turn) in enumerate(zip(milestones, turns, strict=True)):
        landmark = _landmark(milestone, original)
        first = "First, turn" if i == 0 and (i < last or not original) else "Turn"
        lines.append(f"{first} {turn} to face {milestone.direction}.")
        where = f" where {landmark}"
        if landmark == (_NOTHING_AT_KEYPOINT if original else NOTHING) and (i < last or not original):
            where = ""
        goal = "destination" if i == last else "next intersection"
        lines.append(f"Move forward until you reach {goal}{where}.")
    return tuple(lines)


class _Builder:
    def __init__(
        self,
        route: Route,
        heading: float,
        milestones: Sequence[Milestone],
        turns: Sequence[str],
        instructions: Sequence[str],
        index: PanoramaIndex,
        settings: RailSettings,
        rng: random.Random,
    ) -> None:
        self._index, self._settings, self._rng = index, settings, rng
        self._instructions = instructions
        self._keypoints = (route.start, *route.geocodes)
        self._headings = (heading, *(m.heading for m in milestones))
        self._landmarks = (NOTHING, *(_landmark(m, settings.original) for m in milestones))
        words = [m.direction for m in milestones] if settings.absolute else turns
        self._actions = (*(f"turn_direction({word})" for word in words), STOP)
        self._nodes: list[Node] = []

    def build(self) -> list[Node]:
        place, pano = self._keypoints[0], None
        if self._settings.relocation:
            place, pano = snap(place, self._index, "start")
        line = 0  # the present instruction
        for i, target in enumerate(self._keypoints):
            goal = place if i == 0 else target  # the start is where the walker already stands
            far = distance_m(place, goal) > _SEGMENT_M  # measured before the key point moves to its panorama
            if self._settings.relocation:
                goal, pano = snap(goal, self._index, f"place {i} of the way" if i else "start")
            if far:
                self._segment(i, place, goal, line)
            if not self._settings.original and i > 0:
                self._tidy(i, line, pano)
            line += far if self._settings.original else i > 0
            if self._actions[i] == STOP:  # shares the instruction of the last way forward
                line -= 1
            self._nodes.append(
                Node(
                    place=goal,
                    heading=self._headings[i],
                    action=self._actions[i],
                    landmark=self._landmarks[i],
                    intersection=i > 0 and self._actions[i] != STOP,
                    instruction=self._instructions[line],
                    number=line + 1,
                    pano_id=pano,
                )
            )
            line += 1
            place = goal
        return self._nodes

    def _segment(self, i: int, start: Geocode, goal: Geocode, line: int) -> None:
        """Way points from one key point to the next."""
        settings = self._settings
        count = settings.straight_line_length
        if not settings.relocation and not settings.original:
            count -= 1  # the last one would be the key point itself
        for k in range(1, count + 1):
            if self._rng.random() < settings.drop_rate:
                continue
            place, pano = interpolate(start, goal, k, settings.straight_line_length), None
            if settings.relocation:
                found = self._index.nearest(place)
                if found is None:
                    continue
                place, pano = found
                if min(distance_m(start, place), distance_m(goal, place)) <= _APART_M:
                    continue
            self._nodes.append(
                Node(
                    place=place,
                    heading=self._headings[i],
                    action=FORWARD,
                    landmark=NOTHING,
                    intersection=False,
                    instruction=self._instructions[line],
                    number=line + 1,
                    pano_id=pano,
                )
            )

    def _tidy(self, i: int, line: int, goal_pano: str | None) -> None:
        """No panorama twice in a row, and at least one stop at which to go forward on every segment."""
        turned = max(k for k, node in enumerate(self._nodes) if node.action != FORWARD)
        kept = [self._nodes[turned]]
        for node in self._nodes[turned + 1 :]:
            seen = {goal_pano, kept[-1].pano_id} - {None}
            if node.pano_id not in seen:
                kept.append(node)
        if len(kept) == 1:
            kept.append(
                replace(
                    kept[0],
                    heading=self._headings[i],
                    action=FORWARD,
                    landmark=NOTHING,
                    instruction=self._instructions[line],
                    number=line + 1,
                )
            )
        self._nodes[turned + 1 :] = kept[1:]
