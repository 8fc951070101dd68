"""What each benchmark should reach: THE table of targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A figure and its bound."""

    what: str  # the figure in words
    bound: float
    way: Literal["least", "most"]  # the bound is the least, or the most, that will do
    detail: str | None = None  # of `details`; None is the benchmark's `value`

    def figure(self, result: Mapping[str, Any]) -> float | None:
        """Of a result, as a benchmark returns it; None where only a part of the benchmark was run."""
        found = result["value"] if self.detail is None else result["details"].get(self.detail)
        return None if found is None else float(found)

    def holds(self, figure: float) -> bool:
        return figure >= self.bound if self.way == "least" else figure <= self.bound


# Ratios, so that they can stand on one axis.
TARGETS: dict[str, tuple[Target, ...]] = {
    "learner": (
        Target(what="tokens a second, over a bare PyTorch loop on the same rows", bound=0.9, way="least"),
    ),
    "weight_sync": (
        Target(what="learner to engine, over one copy of the bytes", bound=2.0, way="most"),
        Target(
            what="learner to engine, share of an iteration",
            bound=0.05,
            way="most",
            detail="share of an iteration",
        ),
    ),
    "trl": (
        Target(what="a GRPO step with pictures, TRL's time over ours", bound=2.0, way="least"),
        Target(what="in text", bound=1.7, way="least", detail="text: times as fast"),
        Target(what="where games end early", bound=2.3, way="least", detail="taught: times as fast"),
        Target(what="memory, ours over TRL's", bound=1.0, way="most", detail="vision: memory, of TRL's"),
    ),
    "rollout": (
        Target(what="turns a second, over one conversation at a time", bound=10.0, way="least"),
        Target(what="turns a second, over a bare loop", bound=0.85, way="least", detail="over the bare loop"),
    ),
    "stragglers": (
        Target(what="turns a second of 15 simulators, with a slow one over without", bound=0.9, way="least"),
    ),
    "scaling": (Target(what="turns a second, two runner processes over one", bound=1.7, way="least"),),
    "end_to_end": (Target(what="to 60% held-out success, before over after", bound=1.5, way="least"),),
    "session_cache": (
        Target(what="turn 10 over turn 2", bound=1.5, way="most"),
        Target(
            what="prefill without over with",
            bound=3.0,
            way="least",
            detail="prefill without a cache over with one",
        ),
    ),
    "logits_memory": (
        Target(what="peak memory, of all logits at once", bound=0.25, way="most"),
        Target(what="time, of all logits at once", bound=1.15, way="most", detail="time, of theirs"),
    ),
    "packing": (Target(what="useful tokens a second, over padded rows", bound=1.8, way="least"),),
}
