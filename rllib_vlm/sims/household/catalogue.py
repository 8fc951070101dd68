"""What houses are made of: rooms, furniture and household objects, with their shapes and colours.

Everything is built of coloured primitives, so a small vision model can tell kinds apart by shape
and instances by colour. Sizes are in metres; objects are a little larger than life, so that they
stay readable in small pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Shape = Literal["box", "cylinder", "sphere", "ellipsoid", "capsule"]
RGB = tuple[float, float, float]
Vec = tuple[float, float, float]

# Objects: saturated colours, far apart in RGB even when shaded.
ITEM_COLORS: dict[str, RGB] = {
    "red": (0.86, 0.05, 0.05),
    "orange": (1.0, 0.45, 0.0),
    "yellow": (1.0, 0.9, 0.05),
    "green": (0.05, 0.6, 0.1),
    "blue": (0.05, 0.2, 0.95),
    "cyan": (0.1, 0.85, 0.9),
    "purple": (0.5, 0.08, 0.7),
    "pink": (1.0, 0.45, 0.75),
    "white": (0.97, 0.97, 0.97),
    "black": (0.05, 0.05, 0.06),
}

# Furniture: muted colours, so that objects stand out.
FURNITURE_COLORS: dict[str, RGB] = {
    "oak": (0.74, 0.58, 0.4),
    "walnut": (0.38, 0.25, 0.16),
    "grey": (0.52, 0.52, 0.54),
    "beige": (0.84, 0.79, 0.69),
    "teal": (0.2, 0.44, 0.45),
    "olive": (0.47, 0.47, 0.22),
    "navy": (0.16, 0.2, 0.38),
}

# Colours of parts that do not follow the object's own colour.
PART_COLORS: dict[str, RGB] = {
    **ITEM_COLORS,
    **FURNITURE_COLORS,
    "steel": (0.7, 0.72, 0.75),
    "dark": (0.15, 0.15, 0.16),
    "paper": (0.95, 0.93, 0.85),
    "leaf": (0.15, 0.45, 0.12),
    "screen": (0.45, 0.6, 0.7),
    "linen": (0.92, 0.9, 0.86),
    "water": (0.6, 0.8, 0.9),
}


@dataclass(frozen=True, slots=True)
class Part:
    """One primitive. `size` holds half extents as MuJoCo wants them; `pos` is from the centre of the base."""

    shape: Shape
    size: tuple[float, ...]
    pos: Vec
    color: str = "own"  # "own": the piece's colour; otherwise a key of PART_COLORS
    euler: Vec = (0.0, 0.0, 0.0)  # deg, about x, y, z


@dataclass(frozen=True, slots=True)
class ItemKind:
    """A kind of loose object. `size` are the extents of its (collision) bounding box."""

    size: Vec
    parts: tuple[Part, ...]
    mass: float = 0.2  # kg
    round: bool = False  # collides as a sphere, so it can roll
    pickupable: bool = True


@dataclass(frozen=True, slots=True)
class FurnitureKind:
    """A kind of furniture. `width`, `depth`, `height` are ranges to draw from."""

    width: tuple[float, float]
    depth: tuple[float, float]
    height: tuple[float, float]
    receptacle: bool
    wall: bool = True  # stands with its back to a wall; otherwise anywhere


@dataclass(frozen=True, slots=True)
class RoomKind:
    """A type of room: the colours that tell it apart, and what stands in it (first ones first)."""

    floor: RGB
    wall: RGB
    essential: tuple[str, ...]  # one of these always stands there; all are receptacles
    optional: tuple[str, ...]


ROOMS: dict[str, RoomKind] = {
    "kitchen": RoomKind(
        (0.86, 0.78, 0.5), (0.96, 0.92, 0.72),
        ("counter", "table"), ("fridge", "stove", "cabinet", "chair", "counter", "table"),
    ),
    "living room": RoomKind(
        (0.6, 0.44, 0.3), (0.74, 0.86, 0.72),
        ("coffee table", "tv stand"), ("sofa", "shelf", "armchair", "side table", "coffee table"),
    ),
    "bedroom": RoomKind(
        (0.5, 0.54, 0.74), (0.74, 0.78, 0.95),
        ("nightstand", "dresser"), ("bed", "wardrobe", "desk", "nightstand", "dresser"),
    ),
    "bathroom": RoomKind(
        (0.56, 0.76, 0.78), (0.78, 0.95, 0.96),
        ("washstand", "cabinet"), ("bathtub", "toilet", "cabinet", "side table"),
    ),
    "office": RoomKind(
        (0.42, 0.44, 0.44), (0.82, 0.8, 0.78),
        ("desk", "shelf"), ("chair", "side table", "armchair", "shelf", "cabinet"),
    ),
    "dining room": RoomKind(
        (0.66, 0.4, 0.38), (0.96, 0.8, 0.76),
        ("table", "sideboard"), ("chair", "armchair", "side table", "sideboard"),
    ),
}  # fmt: skip

FURNITURE: dict[str, FurnitureKind] = {
    "table": FurnitureKind((1.1, 1.4), (0.65, 0.8), (0.7, 0.76), True, wall=False),
    "coffee table": FurnitureKind((0.8, 1.0), (0.5, 0.6), (0.42, 0.48), True, wall=False),
    "side table": FurnitureKind((0.45, 0.55), (0.45, 0.55), (0.55, 0.6), True),
    "counter": FurnitureKind((1.2, 1.6), (0.5, 0.6), (0.84, 0.9), True),
    "desk": FurnitureKind((1.0, 1.3), (0.5, 0.6), (0.7, 0.76), True),
    "tv stand": FurnitureKind((1.1, 1.4), (0.4, 0.45), (0.45, 0.55), True),
    "shelf": FurnitureKind((0.7, 0.9), (0.4, 0.45), (0.8, 0.9), True),
    "nightstand": FurnitureKind((0.45, 0.55), (0.42, 0.5), (0.48, 0.56), True),
    "dresser": FurnitureKind((0.9, 1.2), (0.45, 0.5), (0.74, 0.84), True),
    "cabinet": FurnitureKind((0.6, 0.8), (0.42, 0.5), (0.7, 0.8), True),
    "washstand": FurnitureKind((0.8, 1.0), (0.48, 0.55), (0.78, 0.86), True),
    "sideboard": FurnitureKind((1.1, 1.4), (0.42, 0.5), (0.76, 0.84), True),
    "fridge": FurnitureKind((0.6, 0.7), (0.6, 0.65), (1.6, 1.75), False),
    "stove": FurnitureKind((0.6, 0.6), (0.58, 0.6), (0.88, 0.9), False),
    "sofa": FurnitureKind((1.5, 1.8), (0.75, 0.85), (0.75, 0.8), False),
    "armchair": FurnitureKind((0.75, 0.8), (0.7, 0.75), (0.75, 0.8), False),
    "chair": FurnitureKind((0.42, 0.45), (0.42, 0.45), (0.85, 0.9), False),
    "bed": FurnitureKind((1.2, 1.5), (1.9, 2.0), (0.85, 0.9), False),
    "wardrobe": FurnitureKind((0.9, 1.2), (0.55, 0.6), (1.8, 1.9), False),
    "bathtub": FurnitureKind((1.4, 1.6), (0.65, 0.7), (0.5, 0.55), False),
    "toilet": FurnitureKind((0.4, 0.42), (0.6, 0.65), (0.75, 0.8), False),
}

# Of a house: least and most.
LIMITS: dict[str, tuple[int, int]] = {"rooms": (1, len(ROOMS)), "furniture": (1, 30), "items": (0, 60)}


def _box(w: float, d: float, h: float, x: float, y: float, z: float, color: str = "own") -> Part:
    """A box by its extents and the position of its centre."""
    return Part("box", (w / 2, d / 2, h / 2), (x, y, z), color)


def _disc(r: float, h: float, z: float, color: str = "own", x: float = 0.0, y: float = 0.0) -> Part:
    """An upright cylinder by its radius, height and the height of its centre."""
    return Part("cylinder", (r, h / 2), (x, y, z), color)


def _ball(r: float, x: float, y: float, z: float, color: str = "own") -> Part:
    return Part("sphere", (r,), (x, y, z), color)


def _egg(rx: float, ry: float, rz: float, x: float, y: float, z: float, color: str = "own") -> Part:
    return Part("ellipsoid", (rx, ry, rz), (x, y, z), color)


ITEMS: dict[str, ItemKind] = {
    "mug": ItemKind((0.18, 0.12, 0.14), (
        _disc(0.06, 0.14, 0.07, x=-0.03), _disc(0.048, 0.004, 0.14, "dark", x=-0.03),
        _box(0.05, 0.025, 0.02, 0.05, 0, 0.115), _box(0.05, 0.025, 0.02, 0.05, 0, 0.035),
        _box(0.02, 0.025, 0.1, 0.08, 0, 0.075))),
    "bowl": ItemKind((0.2, 0.2, 0.09), (
        _disc(0.05, 0.02, 0.01), _disc(0.08, 0.03, 0.035), _disc(0.1, 0.04, 0.07),
        _disc(0.085, 0.004, 0.09, "paper"))),
    "plate": ItemKind((0.24, 0.24, 0.03), (
        _disc(0.07, 0.02, 0.01), _disc(0.12, 0.016, 0.022), _disc(0.07, 0.004, 0.031, "paper")), mass=0.3),
    "apple": ItemKind((0.11, 0.11, 0.11), (
        _ball(0.055, 0, 0, 0.055), _disc(0.008, 0.04, 0.12, "walnut"),
        _egg(0.03, 0.014, 0.006, 0.025, 0, 0.125, "leaf")), round=True),
    "bottle": ItemKind((0.1, 0.1, 0.25), (
        _disc(0.05, 0.15, 0.075), _disc(0.035, 0.03, 0.165), _disc(0.02, 0.05, 0.205),
        _disc(0.024, 0.025, 0.238, "dark")), mass=0.4),
    "book": ItemKind((0.24, 0.17, 0.05), (
        _box(0.24, 0.17, 0.012, 0, 0, 0.044), _box(0.24, 0.17, 0.012, 0, 0, 0.006),
        _box(0.225, 0.15, 0.026, 0.0, -0.005, 0.025, "paper"), _box(0.24, 0.014, 0.05, 0, 0.078, 0.025)), mass=0.4),
    "vase": ItemKind((0.14, 0.14, 0.24), (
        _egg(0.07, 0.07, 0.08, 0, 0, 0.08), _disc(0.03, 0.1, 0.17), _disc(0.055, 0.025, 0.228),
        _disc(0.045, 0.004, 0.241, "dark")), mass=0.4),
    "laptop": ItemKind((0.25, 0.2, 0.19), (
        _box(0.25, 0.18, 0.02, 0, -0.01, 0.01), _box(0.21, 0.1, 0.004, 0, -0.01, 0.021, "dark"),
        _box(0.25, 0.015, 0.17, 0, 0.085, 0.105), _box(0.22, 0.004, 0.135, 0, 0.076, 0.11, "screen")), mass=0.9),
    "remote": ItemKind((0.22, 0.07, 0.04), (
        _box(0.22, 0.07, 0.036, 0, 0, 0.018), _ball(0.014, 0.075, 0, 0.036, "red"),
        _box(0.09, 0.045, 0.006, -0.04, 0, 0.038, "steel"))),
    "candle": ItemKind((0.1, 0.1, 0.2), (
        _disc(0.05, 0.02, 0.01, "steel"), _disc(0.028, 0.13, 0.085), _egg(0.014, 0.014, 0.03, 0, 0, 0.175, "orange"))),
    "box": ItemKind((0.16, 0.16, 0.14), (
        _box(0.15, 0.15, 0.11, 0, 0, 0.055), _box(0.16, 0.16, 0.03, 0, 0, 0.125),
        _box(0.162, 0.03, 0.142, 0, 0, 0.07, "paper"), _box(0.03, 0.162, 0.142, 0, 0, 0.07, "paper"))),
    "ball": ItemKind((0.16, 0.16, 0.16), (
        _ball(0.08, 0, 0, 0.08), _disc(0.0805, 0.03, 0.08, "paper")), round=True),
    "pan": ItemKind((0.25, 0.15, 0.06), (
        _disc(0.075, 0.05, 0.025, x=-0.05), _disc(0.062, 0.004, 0.05, "steel", x=-0.05),
        _box(0.12, 0.025, 0.02, 0.07, 0, 0.045, "dark")), mass=0.6),
    "teapot": ItemKind((0.23, 0.15, 0.17), (
        _egg(0.075, 0.075, 0.06, -0.01, 0, 0.06), _ball(0.018, -0.01, 0, 0.125, "dark"),
        Part("capsule", (0.014, 0.045), (0.075, 0, 0.085), euler=(0, 40, 0)),
        _box(0.02, 0.02, 0.08, -0.1, 0, 0.07, "dark"), _box(0.04, 0.02, 0.02, -0.085, 0, 0.11, "dark")), mass=0.5),
    "clock": ItemKind((0.18, 0.07, 0.2), (
        Part("cylinder", (0.09, 0.025), (0, 0, 0.11), euler=(90, 0, 0)),
        Part("cylinder", (0.072, 0.029), (0, 0, 0.11), "paper", (90, 0, 0)),
        _box(0.012, 0.062, 0.055, 0, 0, 0.135, "dark"), _box(0.045, 0.062, 0.012, 0.022, 0, 0.11, "dark"),
        _box(0.14, 0.07, 0.03, 0, 0, 0.015))),
    "teddy bear": ItemKind((0.16, 0.14, 0.24), (
        _egg(0.06, 0.05, 0.07, 0, 0, 0.07), _ball(0.05, 0, 0, 0.175), _ball(0.02, -0.04, 0, 0.215),
        _ball(0.02, 0.04, 0, 0.215), _ball(0.022, 0, -0.04, 0.165, "paper"), _ball(0.028, 0.055, -0.04, 0.03),
        _ball(0.028, -0.055, -0.04, 0.03))),
    "toy car": ItemKind((0.24, 0.13, 0.12), (
        _box(0.24, 0.11, 0.05, 0, 0, 0.05), _box(0.12, 0.1, 0.05, -0.02, 0, 0.095),
        _box(0.09, 0.104, 0.03, -0.02, 0, 0.093, "screen"),
        Part("cylinder", (0.03, 0.065), (0.075, 0, 0.03), "dark", (90, 0, 0)),
        Part("cylinder", (0.03, 0.065), (-0.075, 0, 0.03), "dark", (90, 0, 0)))),
    "jar": ItemKind((0.12, 0.12, 0.17), (
        _disc(0.06, 0.13, 0.065), _disc(0.061, 0.05, 0.065, "paper"), _disc(0.05, 0.04, 0.15, "steel")), mass=0.4),
    "boot": ItemKind((0.2, 0.09, 0.2), (
        _box(0.2, 0.09, 0.025, 0, 0, 0.012, "dark"), _box(0.19, 0.08, 0.06, 0, 0, 0.05),
        _box(0.09, 0.08, 0.14, -0.05, 0, 0.13)), mass=0.4),
    "goblet": ItemKind((0.12, 0.12, 0.21), (
        _disc(0.05, 0.016, 0.008), _disc(0.014, 0.1, 0.06), _egg(0.06, 0.06, 0.05, 0, 0, 0.135),
        _disc(0.06, 0.06, 0.18), _disc(0.05, 0.004, 0.21, "dark"))),
    "dumbbell": ItemKind((0.24, 0.11, 0.11), (
        Part("cylinder", (0.055, 0.03), (0.09, 0, 0.055), euler=(0, 90, 0)),
        Part("cylinder", (0.055, 0.03), (-0.09, 0, 0.055), euler=(0, 90, 0)),
        Part("cylinder", (0.016, 0.08), (0, 0, 0.055), "steel", (0, 90, 0))), mass=1.0),
    "duck": ItemKind((0.19, 0.12, 0.18), (
        _egg(0.085, 0.06, 0.055, -0.01, 0, 0.055), _ball(0.045, 0.045, 0, 0.135),
        Part("box", (0.025, 0.018, 0.01), (0.095, 0, 0.128), "orange"),
        _ball(0.011, 0.072, 0.032, 0.15, "dark"), _ball(0.011, 0.072, -0.032, 0.15, "dark"))),
    "radio": ItemKind((0.24, 0.09, 0.2), (
        _box(0.24, 0.09, 0.13, 0, 0, 0.065), Part("cylinder", (0.04, 0.048), (-0.055, 0, 0.065), "dark", (90, 0, 0)),
        _box(0.08, 0.096, 0.035, 0.06, 0, 0.085, "screen"), _box(0.012, 0.012, 0.08, 0.1, 0, 0.16, "steel"))),
    "basket": ItemKind((0.22, 0.15, 0.2), (
        _box(0.22, 0.15, 0.1, 0, 0, 0.05), _box(0.19, 0.12, 0.004, 0, 0, 0.1, "dark"),
        _box(0.015, 0.03, 0.1, 0.1, 0, 0.14), _box(0.015, 0.03, 0.1, -0.1, 0, 0.14),
        _box(0.215, 0.03, 0.018, 0, 0, 0.19))),
    "lamp": ItemKind((0.2, 0.2, 0.36), (
        _disc(0.07, 0.03, 0.015, "dark"), _disc(0.015, 0.2, 0.13, "steel"), _disc(0.1, 0.13, 0.295)),
        mass=3.0, pickupable=False),
    "potted plant": ItemKind((0.2, 0.2, 0.34), (
        _disc(0.08, 0.13, 0.065), _egg(0.1, 0.1, 0.11, 0, 0, 0.23, "leaf")), mass=4.0, pickupable=False),
}  # fmt: skip
