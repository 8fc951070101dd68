"""The words of the walker's world: its actions, what the system prompt says of it, the characters of its texts."""

from __future__ import annotations

import string

from rllib_vlm.sims.streetview.dataset import DataSet
from rllib_vlm.sims.streetview.geo import COMPASS
from rllib_vlm.sims.streetview.rail import FORWARD, RELATIVE, STOP
from rllib_vlm.types import ActionSet


def action_names(*, absolute: bool) -> ActionSet:
    """`forward()`, `turn_direction(...)` and `stop()`; turns are compass words or left and right."""
    words = COMPASS if absolute else RELATIVE
    turns = tuple(f"turn_direction({word})" for word in words)
    aliases = dict(zip(words, turns, strict=True))
    return ActionSet(names=(FORWARD, *turns, STOP), aliases={**aliases, "forward": FORWARD, "stop": STOP})


def description(*, absolute: bool, vision: bool) -> str:
    """Who acts, what is seen, what each action does."""
    turns = ", ".join(COMPASS if absolute else RELATIVE)
    seen = (
        "You see one picture of four street views in a 2x2 grid (front, right / back, left). "
        if vision
        else "What there is to see is told in words. "
    )
    return (
        "You walk through a city and follow numbered instructions to a destination. "
        f"{seen}"
        "The text lists what was observed (O) and done (A) so far. Find the instruction that is due now, then act. "
        "forward() walks on to the next place; "
        f"turn_direction(x) turns to x, one of {turns}; "
        "stop() ends the walk at the destination."
    )


def characters(data: DataSet) -> frozenset[str]:
    """Every character that a text may hold: names of places are in any script."""
    names = [route.milestone_info for route in data.routes]
    for name in data.others:
        names += [route.milestone_info for route in data.others[name]().routes]
    return frozenset(string.printable).union(*names)
