"""What furniture looks like: a few primitives per piece, in the piece's own frame.

The piece's back is on its +y side, the origin is on the floor below its centre.
"""

from __future__ import annotations

from collections.abc import Callable

from rllib_vlm.sims.household.catalogue import Part
from rllib_vlm.sims.household.world import Furniture

LEGGED = frozenset({"table", "coffee table", "side table", "desk", "chair"})


def furniture_parts(piece: Furniture) -> tuple[list[Part], bool]:
    """The primitives of a piece, and whether it stands on legs (its own parts then do not collide)."""
    build = _BUILDERS.get(piece.type, _chest)
    return build(piece), piece.type in LEGGED


def _box(x0: float, x1: float, y0: float, y1: float, z0: float, z1: float, color: str = "own") -> Part:
    size = ((x1 - x0) / 2, (y1 - y0) / 2, (z1 - z0) / 2)
    return Part("box", size, ((x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2), color)


def _tabletop(f: Furniture) -> list[Part]:
    w, d, h, leg = f.width / 2, f.depth / 2, f.height, 0.05
    parts = [_box(-w, w, -d, d, h - 0.05, h)]
    for x in (-w, w - leg):
        for y in (-d, d - leg):
            parts.append(_box(x, x + leg, y, y + leg, 0, h - 0.05))
    return parts


def _side_table(f: Furniture) -> list[Part]:
    w, d, h = f.width / 2, f.depth / 2, f.height
    return [_box(-w, w, -d, d, h - 0.04, h), Part("cylinder", (0.04, h / 2 - 0.02), (0, 0, h / 2 - 0.02)),
            _box(-0.7 * w, 0.7 * w, -0.7 * d, 0.7 * d, 0, 0.04)]  # fmt: skip


def _desk(f: Furniture) -> list[Part]:
    w, d, h = f.width / 2, f.depth / 2, f.height
    drawers = [_box(w - 0.3, w - 0.05, -d + 0.01, -d + 0.03, z, z + 0.2, "paper") for z in (0.08, 0.35)]
    return [_box(-w, w, -d, d, h - 0.05, h), _box(-w, -w + 0.04, -d, d, 0, h - 0.05),
            _box(w - 0.35, w, -d + 0.02, d, 0, h - 0.05), *drawers]  # fmt: skip


def _chest(
    f: Furniture, rows: int = 2, columns: int = 2, front: str = "paper", top: str = "own"
) -> list[Part]:
    """A solid block with a grid of fronts."""
    w, d, h = f.width / 2, f.depth / 2, f.height
    parts = [_box(-w, w, -d + 0.015, d, 0, h - 0.04), _box(-w, w, -d, d, h - 0.04, h, top)]
    cell_w, cell_h = f.width / columns, (h - 0.08) / rows
    for c in range(columns):
        for r in range(rows):
            x0, z0 = -w + c * cell_w, 0.04 + r * cell_h
            parts.append(
                _box(x0 + 0.04, x0 + cell_w - 0.04, -d, -d + 0.02, z0 + 0.03, z0 + cell_h - 0.03, front)
            )
    return parts


def _counter(f: Furniture) -> list[Part]:
    return _chest(f, 1, 3, "own", "steel")


def _dresser(f: Furniture) -> list[Part]:
    return _chest(f, 3, 1, "paper")


def _cabinet(f: Furniture) -> list[Part]:
    return _chest(f, 1, 2, "paper")


def _nightstand(f: Furniture) -> list[Part]:
    return _chest(f, 1, 1, "paper")


def _sideboard(f: Furniture) -> list[Part]:
    return _chest(f, 1, 4, "dark")


def _tv_stand(f: Furniture) -> list[Part]:
    return _chest(f, 1, 2, "dark")


def _shelf(f: Furniture) -> list[Part]:
    return _chest(f, 3, 1, "dark")


def _washstand(f: Furniture) -> list[Part]:
    tap = _box(-0.06, 0.06, f.depth / 2 - 0.04, f.depth / 2, f.height, f.height + 0.12, "steel")
    return [*_chest(f, 1, 1, "own", "linen"), tap]


def _fridge(f: Furniture) -> list[Part]:
    w, d, h = f.width / 2, f.depth / 2, f.height
    return [_box(-w, w, -d + 0.02, d, 0, h), _box(-w + 0.01, w - 0.01, -d, -d + 0.02, 0.05, 0.62 * h, "steel"),
            _box(-w + 0.01, w - 0.01, -d, -d + 0.02, 0.65 * h, h - 0.02, "steel")]  # fmt: skip


def _stove(f: Furniture) -> list[Part]:
    w, d, h = f.width / 2, f.depth / 2, f.height
    rings = [
        Part("cylinder", (0.09, 0.005), (x, y, h - 0.004), "steel")
        for x in (-0.14, 0.14)
        for y in (-0.13, 0.13)
    ]
    return [_box(-w, w, -d + 0.02, d, 0, h - 0.03), _box(-w, w, -d, d, h - 0.03, h - 0.005, "dark"),
            _box(-w + 0.06, w - 0.06, -d, -d + 0.02, 0.2, 0.65, "dark"), *rings]  # fmt: skip


def _seat(f: Furniture, arm: float, seat: float) -> list[Part]:
    w, d, h = f.width / 2, f.depth / 2, f.height
    return [_box(-w, w, d - 0.2, d, 0, h), _box(-w + arm, w - arm, -d, d - 0.2, 0, seat),
            _box(-w, -w + arm, -d, d - 0.2, 0, seat + 0.17), _box(w - arm, w, -d, d - 0.2, 0, seat + 0.17)]  # fmt: skip


def _sofa(f: Furniture) -> list[Part]:
    return _seat(f, 0.18, 0.42)


def _armchair(f: Furniture) -> list[Part]:
    return _seat(f, 0.14, 0.42)


def _chair(f: Furniture) -> list[Part]:
    w, d, h, leg = f.width / 2, f.depth / 2, f.height, 0.04
    parts = [_box(-w, w, -d, d, 0.42, 0.47), _box(-w, w, d - 0.04, d, 0.47, h)]
    for x in (-w, w - leg):
        for y in (-d, d - leg):
            parts.append(_box(x, x + leg, y, y + leg, 0, 0.42))
    return parts


def _bed(f: Furniture) -> list[Part]:
    w, d, h = f.width / 2, f.depth / 2, f.height
    return [_box(-w, w, d - 0.06, d, 0, h), _box(-w, w, -d, d - 0.06, 0, 0.28), _box(-w, w, -d, d - 0.55, 0.28, 0.5),
            _box(-w, w, d - 0.55, d - 0.06, 0.28, 0.48, "linen"),
            _box(-0.6 * w, 0.6 * w, d - 0.48, d - 0.12, 0.48, 0.58, "white")]  # fmt: skip


def _wardrobe(f: Furniture) -> list[Part]:
    return _chest(f, 1, 2, "walnut" if f.color != "walnut" else "oak")


def _bathtub(f: Furniture) -> list[Part]:
    w, d, h, rim = f.width / 2, f.depth / 2, f.height, 0.07
    long = [_box(-w, w, y, y + rim, 0, h) for y in (-d, d - rim)]
    short = [_box(x, x + rim, -d + rim, d - rim, 0, h) for x in (-w, w - rim)]
    return [*long, *short, _box(-w + rim, w - rim, -d + rim, d - rim, 0, 0.6 * h, "water")]


def _toilet(f: Furniture) -> list[Part]:
    w, d, h = f.width / 2, f.depth / 2, f.height
    return [_box(-w, w, d - 0.18, d, 0.35, h, "linen"), Part("cylinder", (0.18, 0.2), (0, -d + 0.2, 0.2), "linen"),
            Part("cylinder", (0.19, 0.015), (0, -d + 0.2, 0.415)),
            _box(-0.12, 0.12, d - 0.25, d, 0, 0.35, "linen")]  # fmt: skip


_BUILDERS: dict[str, Callable[[Furniture], list[Part]]] = {
    "table": _tabletop, "coffee table": _tabletop, "side table": _side_table, "desk": _desk, "counter": _counter,
    "dresser": _dresser, "cabinet": _cabinet, "nightstand": _nightstand, "sideboard": _sideboard,
    "tv stand": _tv_stand, "shelf": _shelf, "washstand": _washstand, "fridge": _fridge, "stove": _stove,
    "sofa": _sofa, "armchair": _armchair, "chair": _chair, "bed": _bed, "wardrobe": _wardrobe,
    "bathtub": _bathtub, "toilet": _toilet,
}  # fmt: skip
