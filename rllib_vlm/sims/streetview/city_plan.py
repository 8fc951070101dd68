"""A city's plan: streets as a graph, houses along them, landmarks in the houses, panoramas in the streets.

Coordinates are metres to the east and north of the city's corner.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import cast

import networkx as nx

from rllib_vlm.sims.streetview.city_style import KINDS, Style
from rllib_vlm.sims.streetview.geo import Geocode, metres_per_degree

Point = tuple[float, float]
Corner = tuple[int, int]  # an intersection's column and row

HALF_STREET_M = 9.0  # from the middle to the houses
_EVERY_M = 10.0  # a panorama
_HOUSE_M = 16.0
_SIGNS_AT_CORNERS, _SIGNS_BETWEEN = 0.65, 0.85


@dataclass(frozen=True, slots=True)
class House:
    """A stretch of a wall."""

    height: float
    wall: int  # number of its colour in the style
    landmark: str = ""  # "Hudson Bakery"; "" is nothing


@dataclass(frozen=True, slots=True)
class Wall:
    """A row of houses of the same width, seen from the street on its left when one looks from a to b."""

    a: Point
    b: Point
    houses: tuple[House, ...]

    @property
    def length(self) -> float:
        return math.dist(self.a, self.b)

    def middle(self, house: int) -> Point:
        """The middle of a house's front."""
        share = (house + 0.5) / len(self.houses)
        return (self.a[0] + share * (self.b[0] - self.a[0]), self.a[1] + share * (self.b[1] - self.a[1]))


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that does not depend on who walks where."""

    style: Style
    streets: nx.Graph  # of corners; nodes have `at`
    walls: tuple[Wall, ...]
    sides: dict[
        tuple[Corner, Corner], Wall
    ]  # the houses on the right of who walks from the first to the second
    panoramas: dict[str, Point]
    along: dict[
        tuple[Corner, Corner], tuple[str, ...]
    ]  # panoramas of a street, in walking order, without its ends
    at_corner: dict[Corner, str] = field(default_factory=dict)

    def at(self, corner: Corner) -> Point:
        """Where an intersection is."""
        return cast("Point", self.streets.nodes[corner]["at"])

    def geocode(self, point: Point) -> Geocode:
        """Latitude and longitude, with the seven decimals that maps give."""
        latitude, longitude = self.style.origin
        north, east = metres_per_degree(latitude)
        return round(latitude + point[1] / north, 7), round(longitude + point[0] / east, 7)


def heading_deg(a: Point, b: Point) -> float:
    """The way from a to b, clockwise from north, 0 to 360."""
    return math.degrees(math.atan2(b[0] - a[0], b[1] - a[1])) % 360.0


def make_plan(style: Style, size: int, rng: random.Random) -> Plan:
    """A city of `size` x `size` intersections."""
    streets = _streets(style, size, rng)
    names = [f"{adjective} {kind}" for adjective in style.adjectives for kind in KINDS]
    rng.shuffle(names)
    sides, walls = {}, []
    for a, b in sorted(streets.edges):
        for start, end in ((a, b), (b, a)):
            wall = _row_of_houses(style, _at(streets, start), _at(streets, end), names, rng)
            sides[start, end] = wall
            walls.append(wall)
    for corner in sorted(streets.nodes):
        walls += _closings(style, streets, corner, rng)
    plan = Plan(style, streets, tuple(walls), sides, {}, {})
    _place_panoramas(plan)
    return plan


def _at(streets: nx.Graph, corner: Corner) -> Point:
    return cast("Point", streets.nodes[corner]["at"])


def _streets(style: Style, size: int, rng: random.Random) -> nx.Graph:
    """A grid, turned and bent, without some of its sections; every corner keeps two and can be reached."""
    streets = nx.grid_2d_graph(size, size)
    turn = math.radians(style.rotation)
    for column, row in sorted(streets.nodes):
        x = column * style.block[0] + rng.uniform(-style.jitter, style.jitter)
        y = row * style.block[1] + rng.uniform(-style.jitter, style.jitter)
        at = (x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn))
        streets.nodes[column, row]["at"] = at
    edges = sorted(streets.edges)
    rng.shuffle(edges)
    for a, b in edges[: round(style.removed * len(edges))]:
        if min(streets.degree[a], streets.degree[b]) > 2:
            streets.remove_edge(a, b)
            if not nx.has_path(streets, a, b):
                streets.add_edge(a, b)
    return streets


def _row_of_houses(style: Style, a: Point, b: Point, names: list[str], rng: random.Random) -> Wall:
    """The houses on the right of the street from a to b."""
    length = math.dist(a, b)
    along = ((b[0] - a[0]) / length, (b[1] - a[1]) / length)
    right = (along[1], -along[0])
    first, last = HALF_STREET_M, length - HALF_STREET_M
    ends = [
        (a[0] + s * along[0] + HALF_STREET_M * right[0], a[1] + s * along[1] + HALF_STREET_M * right[1])
        for s in (first, last)
    ]
    count = max(3, round((last - first) / _HOUSE_M))
    middle = rng.randrange(1, count - 1)
    houses = []
    for k in range(count):
        chance = _SIGNS_AT_CORNERS if k in (0, count - 1) else _SIGNS_BETWEEN * (k == middle)
        signed = rng.random() < chance and bool(names)
        houses.append(
            House(rng.uniform(*style.heights), rng.randrange(len(style.walls)), names.pop() if signed else "")
        )
    return Wall(ends[0], ends[1], tuple(houses))


def _closings(style: Style, streets: nx.Graph, corner: Corner, rng: random.Random) -> list[Wall]:
    """Houses across a corner where one of its four streets is missing."""
    walls = []
    here = _at(streets, corner)
    turn = math.radians(style.rotation)
    for way in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        if (corner[0] + way[0], corner[1] + way[1]) in streets[corner]:
            continue
        out = (
            way[0] * math.cos(turn) + way[1] * math.sin(turn),
            way[1] * math.cos(turn) - way[0] * math.sin(turn),
        )
        right, half = (out[1], -out[0]), HALF_STREET_M + 4.0
        ends = [
            (here[0] + HALF_STREET_M * out[0] + s * right[0], here[1] + HALF_STREET_M * out[1] + s * right[1])
            for s in (-half, half)
        ]
        houses = tuple(House(rng.uniform(*style.heights), rng.randrange(len(style.walls))) for _ in range(2))
        walls.append(Wall(ends[0], ends[1], houses))
    return walls


def _place_panoramas(plan: Plan) -> None:
    """One in the middle of each intersection, and one every ten metres in the streets between."""
    for corner in sorted(plan.streets.nodes):
        name = f"pano_c{corner[0]:02d}{corner[1]:02d}"
        plan.panoramas[name] = plan.at(corner)
        plan.at_corner[corner] = name
    for a, b in sorted(plan.streets.edges):
        start, end = plan.at(a), plan.at(b)
        count = max(2, round(math.dist(start, end) / _EVERY_M))
        names = []
        for k in range(1, count):
            name = f"pano_{a[0]:02d}{a[1]:02d}_{b[0]:02d}{b[1]:02d}_{k:02d}"
            share = k / count
            plan.panoramas[name] = (
                start[0] + share * (end[0] - start[0]),
                start[1] + share * (end[1] - start[1]),
            )
            names.append(name)
        plan.along[a, b] = tuple(names)
        plan.along[b, a] = tuple(reversed(names))
