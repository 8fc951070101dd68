"""How the two synthetic cities differ: their plan, their houses, their light and their names."""

from __future__ import annotations

from dataclasses import dataclass

from rllib_vlm.sims.streetview.geo import Geocode

RGB = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """Lengths in metres, angles in degrees."""

    origin: Geocode  # of the city's south-west corner
    rotation: float  # of its streets, clockwise from north
    block: tuple[float, float]  # between neighbouring streets
    jitter: float  # of intersections, so that streets bend
    removed: float  # share of street sections that are not there
    heights: tuple[float, float]
    walls: tuple[RGB, ...]
    window: RGB
    window_every: tuple[float, float]  # along the wall and up
    sky: tuple[RGB, RGB]  # above and at the horizon
    road: RGB
    pavement: RGB
    line: RGB
    sign: RGB  # its letters
    shade: float  # how dark the shaded side of a street is
    adjectives: tuple[str, ...]


STYLES: dict[str, Style] = {
    "nyc": Style(
        origin=(40.7440, -73.9900),
        rotation=29.0,
        block=(66.0, 78.0),
        jitter=0.0,
        removed=0.06,
        heights=(18.0, 60.0),
        walls=((134, 74, 58), (150, 96, 72), (112, 108, 104), (92, 78, 72), (164, 150, 130), (76, 84, 96)),
        window=(44, 56, 70),
        window_every=(2.6, 3.4),
        sky=((92, 128, 176), (186, 198, 210)),
        road=(62, 62, 66),
        pavement=(150, 148, 144),
        line=(226, 186, 60),
        sign=(250, 248, 240),
        shade=0.72,
        adjectives=(
            "Astor", "Bleeker", "Bronze", "Canal", "Carlton", "Chelsea", "Crown", "Delancy", "Empire", "Essex",
            "Gotham", "Grand", "Harlem", "Hudson", "Iron", "Knicker", "Liberty", "Lenox", "Madison", "Mercer",
            "Metro", "Midtown", "Nassau", "Orchard", "Park", "Penn", "Plaza", "Prince", "Regent", "Ritz",
            "Rivoli", "Sable", "Spring", "Stone", "Tribune", "Union", "Varick", "Vernon", "Warren", "Winston",
        ),
    ),
    "sf": Style(
        origin=(37.7760, -122.4320),
        rotation=9.0,
        block=(84.0, 70.0),
        jitter=9.0,
        removed=0.14,
        heights=(8.0, 15.0),
        walls=((238, 206, 214), (196, 222, 240), (246, 236, 190), (202, 234, 206), (232, 214, 240), (250, 222, 190)),
        window=(250, 250, 252),
        window_every=(1.9, 2.9),
        sky=((84, 168, 238), (232, 240, 246)),
        road=(112, 108, 106),
        pavement=(206, 198, 186),
        line=(245, 245, 245),
        sign=(38, 30, 60),
        shade=0.9,
        adjectives=(
            "Alamo", "Amber", "Bay", "Bernal", "Cable", "Cedar", "Coral", "Dolores", "Eureka", "Fog",
            "Fulton", "Geary", "Golden", "Haight", "Harbor", "Hazel", "Jade", "Juniper", "Laguna", "Lombard",
            "Marina", "Mission", "Noe", "Ocean", "Pacific", "Pearl", "Pier", "Potrero", "Presidio", "Redwood",
            "Seal", "Sierra", "Sunset", "Sutro", "Telegraf", "Twin", "Valencia", "Vallejo", "Wharf", "Willow",
        ),
    ),
}  # fmt: skip

# What a landmark is, and the colour of its front and sign.
KINDS: dict[str, RGB] = {
    "Bakery": (204, 142, 64), "Bank": (40, 92, 60), "Books": (104, 60, 36), "Cafe": (120, 84, 52),
    "Cinema": (150, 28, 40), "Cycles": (36, 150, 160), "Deli": (206, 62, 44), "Diner": (216, 44, 64),
    "Drugs": (44, 140, 78), "Florist": (214, 84, 150), "Gallery": (90, 90, 94), "Garage": (70, 76, 88),
    "Grocer": (84, 154, 52), "Gym": (240, 120, 30), "Hotel": (92, 36, 92), "Jewels": (86, 64, 160),
    "Laundry": (70, 150, 214), "Library": (126, 96, 60), "Museum": (170, 156, 120), "Music": (148, 52, 170),
    "Optics": (30, 110, 170), "Pizza": (222, 96, 40), "Post": (40, 70, 150), "Salon": (232, 120, 160),
    "School": (190, 160, 40), "Shoes": (96, 66, 48), "Sushi": (34, 54, 70), "Tailor": (56, 50, 90),
    "Tea": (104, 140, 70), "Toys": (236, 196, 50),
}  # fmt: skip
