"""What the system prompt says of the walker's world."""

from __future__ import annotations

from rllib_vlm.sims.streetview.geo import COMPASS
from rllib_vlm.sims.streetview.rail import RELATIVE


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
