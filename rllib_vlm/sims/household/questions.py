"""Questions about what the robot sees, and their true answers: material to learn seeing from, beside acting."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import numpy as np

from rllib_vlm.sims.household.catalogue import ITEM_COLORS, ITEMS
from rllib_vlm.sims.household.scene import CAMERAS, VERTICAL_FOV_DEG, Scene, Sighting
from rllib_vlm.types import Detection

_MOST_ABSENT = 3
_FROM_HERE = 0.5  # share of absent things that exist elsewhere in the house


def locate(
    scene: Scene, where: Callable[[Sighting], str], rng: np.random.Generator, count: int
) -> tuple[str, str] | None:
    """Where some things are: `locate the red mug , the blue cup` and `red mug left 12 8; blue cup not seen`.

    Up to `count` things in random order, most of them visible, some not; of things that look alike the
    nearest is meant. `where` says in words where a visible thing is. None where there is nothing to ask.
    """
    held = scene.world.robot.held
    places: dict[str, str] = {}
    for seen in scene.look():
        if seen.kind != "door" and seen.id != held:
            places.setdefault(seen.words, where(seen))
    shown = [str(words) for words in rng.permutation(sorted(places))][: max(1, count - 1)]
    elsewhere = sorted({f"{i.color} {i.type}" for i in scene.house.items} - places.keys())
    absent: list[str] = []
    for _ in range(min(max(count - len(shown), 0), _MOST_ABSENT)):
        if elsewhere and rng.random() < _FROM_HERE:
            words = elsewhere[int(rng.integers(len(elsewhere)))]
        else:
            words = f"{_draw(rng, ITEM_COLORS)} {_draw(rng, ITEMS)}"
        if words not in places and words not in absent:
            absent.append(words)
    asked = [str(words) for words in rng.permutation([*shown, *absent])]
    if not asked:
        return None
    # A blank before each comma: a name then is the same token before it as before a full stop or a place.
    question = "locate " + " , ".join(f"the {words}" for words in asked)
    return question, "; ".join(f"{words} {places.get(words, 'not seen')}" for words in asked)


def _draw(rng: np.random.Generator, names: Mapping[str, object]) -> str:
    return list(names)[int(rng.integers(len(names)))]


def detections(
    scene: Scene, where: Callable[[Sighting], str], named: Collection[str]
) -> tuple[Detection, ...]:
    """Where in which camera's picture the visible items and furniture pieces are, nearest first.

    `where` says in words where a visible thing is; `named` are the ids of those the instruction asks for.
    """
    width, height = scene.world.camera_size
    focal = 0.5 / math.tan(math.radians(VERTICAL_FOV_DEG) / 2)  # in picture heights
    things = [s for s in scene.look() if s.kind != "door"]
    found = []
    for image, camera in enumerate(CAMERAS):
        visible = [s for s in things if camera in s.cameras]
        views = scene.world.views(camera, [s.id for s in visible])
        for seen in visible:
            bearing, elevation = (math.radians(a) for a in (views[seen.id].bearing, views[seen.id].elevation))
            x = 0.5 - math.tan(bearing) * focal * height / width
            y = 0.5 - math.tan(elevation) / math.cos(bearing) * focal
            if 0.0 <= x < 1.0 and 0.0 <= y < 1.0:
                found.append(
                    Detection(
                        image=image, x=x, y=y, words=seen.words, place=where(seen), named=seen.id in named,
                        pixels=views[seen.id].pixels,
                    )
                )  # fmt: skip
    return tuple(found)
