"""Places on the earth: distances, compass words, and the panorama nearest to a place.

A place is (latitude, longitude) in degrees; a heading is in degrees clockwise from north.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

Geocode = tuple[float, float]

COMPASS = ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest")
_EQUATOR_M, _ECCENTRICITY_2 = 6378137.0, 6.69437999014e-3  # WGS 84
_SPHERE_M = 6371000.0  # the mean radius that V-IRL's haversine distances use


def compass_word(heading_deg: float) -> str:
    """The nearest of the eight compass words."""
    return COMPASS[round(heading_deg / 45.0) % 8]


def wrapped_deg(angle_deg: float) -> float:
    """The same angle in [-180, 180)."""
    return (angle_deg + 180.0) % 360.0 - 180.0


def metres_per_degree(latitude_deg: float) -> tuple[float, float]:
    """Metres to the north and to the east per degree, on the WGS 84 ellipsoid (its radii of curvature)."""
    sine = math.sin(math.radians(latitude_deg))
    bulge = 1.0 - _ECCENTRICITY_2 * sine * sine
    meridian = _EQUATOR_M * (1.0 - _ECCENTRICITY_2) / bulge**1.5
    vertical = _EQUATOR_M / math.sqrt(bulge)
    return math.radians(meridian), math.radians(vertical * math.cos(math.radians(latitude_deg)))


def distance_m(a: Sequence[float], b: Sequence[float]) -> float:
    """Metres between two places. Below a kilometre it is the WGS 84 geodesic to a tenth of a millimetre."""
    north, east = metres_per_degree((a[0] + b[0]) / 2.0)
    return math.hypot((a[0] - b[0]) * north, wrapped_deg(a[1] - b[1]) * east)


def interpolate(a: Sequence[float], b: Sequence[float], i: int, n: int) -> Geocode:
    """The i-th of n points from `a` (i = 0) to `b` (i = n)."""
    share = i / n
    return a[0] * (1 - share) + b[0] * share, a[1] * (1 - share) + b[1] * share


class PanoramaIndex:
    """Which panorama stands at a place, or nearest to it.

    Args:
        mapping: place -> panorama id.
        radius_m: farther panoramas do not count (great-circle metres).
    """

    def __init__(self, mapping: Mapping[Geocode, str], *, radius_m: float = 20.0) -> None:
        self.mapping = dict(mapping)
        self.radius_m = radius_m
        self._places = list(self.mapping)
        self._tree = KDTree(_on_sphere(np.asarray(self._places, float))) if self._places else None

    def __len__(self) -> int:
        return len(self._places)

    def nearest(self, place: Sequence[float]) -> tuple[Geocode, str] | None:
        """Where the nearest panorama stands, and its id; None if there is none within the radius."""
        exact = (place[0], place[1])
        if exact in self.mapping:
            return exact, self.mapping[exact]
        if self._tree is None:
            return None
        chord, number = self._tree.query(_on_sphere(np.asarray([exact], float))[0])
        if 2.0 * _SPHERE_M * math.asin(min(1.0, chord / (2.0 * _SPHERE_M))) >= self.radius_m:
            return None
        found = self._places[int(number)]
        return found, self.mapping[found]


def _on_sphere(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[n, 2]` degrees as `[n, 3]` metres, in which straight lines order places as arcs do."""
    latitude, longitude = np.radians(places).T
    flat = np.cos(latitude)
    return _SPHERE_M * np.stack(
        [flat * np.cos(longitude), flat * np.sin(longitude), np.sin(latitude)], axis=-1
    )
