"""What the walker reads: the oracle's account of the way so far, and nothing of what lies ahead."""

from __future__ import annotations

from collections.abc import Sequence

from rllib_vlm.sims.streetview.rail import INTERSECTION, NOTHING, Node

_VIEWS = "You observe an image of 4 views"


def original_sequence(observations: Sequence[str], actions: Sequence[str], *, vision: bool) -> str:
    """V-IRL's text: observations and the actions that followed them; the last observation waits for one.

    Args:
        observations: the oracle's, the present one last.
        actions: one fewer.
        vision: whether pictures are shown; then the text still tells of an intersection, as V-IRL does.
    """
    pairs = zip(observations, actions, strict=False)
    lines = [f"O_{i}: {seen}\nA_{i}: {done}\n" for i, (seen, done) in enumerate(pairs, 1)]
    present = observations[-1]
    if vision:
        present = f"{_VIEWS}; {INTERSECTION if INTERSECTION in present else ''}"
    return "".join([*lines, f"O_{len(observations)}: {present}\nA_{len(observations)}: \n"])


def sequence(past: Sequence[Node], now: Node, *, vision: bool, told: bool) -> str:
    """The same without loose ends; with `vision` and not `told`, the present stop is for the eyes alone."""
    lines = [f"O_{i}: {describe(node)}\nA_{i}: {node.action}" for i, node in enumerate(past, 1)]
    number = len(past) + 1
    return "\n".join([*lines, f"O_{number}: {present(now, vision=vision, told=told)}", f"A_{number}:"])


def present(now: Node, *, vision: bool, told: bool) -> str:
    """What is told of the present stop alone."""
    seen = [_VIEWS] if vision else []
    if told:
        seen.append(describe(now))
    return "; ".join(seen)


def describe(node: Node) -> str:
    """The oracle's observation of a stop: its landmark, its intersection, or that there is nothing."""
    parts = [node.landmark] if node.landmark != NOTHING or not node.intersection else []
    return "; ".join([*parts, INTERSECTION] if node.intersection else parts)
