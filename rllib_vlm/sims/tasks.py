"""Curricula: where episodes start, as a function of how far training has come.

A curriculum maps a level from 0 (easiest) to 1 (the full task) to the odds of each kind of start.
A simulator draws the start of each episode from these odds with the episode's own seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np

from rllib_vlm.errors import UnknownNameError

Start = Literal["near", "same_room", "anywhere"]
STARTS: tuple[Start, ...] = get_args(Start)

Curriculum = Callable[[float], Mapping[Start, float]]


def short_to_full_fetch(level: float) -> Mapping[Start, float]:
    """From starts in front of the target, over starts in its room, to starts anywhere in the house.

    Level 0 has 80% near starts, level 0.5 mostly starts in the target's room, level 1 only starts
    anywhere. Every level below 1 keeps some of each kind, so that nothing learned early is lost.
    """
    level = min(max(level, 0.0), 1.0)
    near = max(0.0, 0.8 - 1.4 * level) if level < 0.5 else 0.2 * (1.0 - level)
    anywhere = 0.1 + 0.9 * level**2
    near = min(near, 1.0 - anywhere)
    return {"near": near, "same_room": max(0.0, 1.0 - near - anywhere), "anywhere": anywhere}


CURRICULA: dict[str, Curriculum] = {"short_to_full_fetch": short_to_full_fetch}


def curriculum(name: str) -> Curriculum:
    """The curriculum of that name.

    Raises:
        UnknownNameError: no curriculum has this name.
    """
    if name not in CURRICULA:
        raise UnknownNameError("curricula", name, CURRICULA)
    return CURRICULA[name]


def draw_start(odds: Mapping[Start, float], rng: np.random.Generator) -> Start:
    """One kind of start, drawn with these odds (they need not sum to one)."""
    names = [s for s in STARTS if odds.get(s, 0.0) > 0.0]
    weights = np.array([odds[s] for s in names])
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]
