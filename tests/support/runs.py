"""Short runs of whole algorithms, and what is the same in two of them."""

from __future__ import annotations

from typing import Any

import numpy as np

# Seconds and what is counted in them; and the counters of a process, which a new one begins anew.
_TIMES = (
    "_s",
    "time",
    "timers",
    "throughput",
    "pid",
    "date",
    "wall",
    "hostname",
    "node",
    "trial",
    "perf",
    "timestamp",
)


def figures(result: dict[str, Any], path: str = "") -> dict[str, float]:
    """All numbers of a result but times."""
    found: dict[str, float] = {}
    for key, value in result.items():
        if any(part in key for part in _TIMES) or key in (
            "config",
            "since_restore",
            "iterations_since_restore",
        ):
            continue
        if isinstance(value, dict):
            found |= figures(value, f"{path}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[path + key] = float(value)
    return found


def weights(algorithm: Any) -> dict[str, np.ndarray]:
    """Of the learner; copies, since a local learner's change in place."""
    found = algorithm.learner_group.get_weights()["default_policy"]
    return {name: np.array(value) for name, value in found.items()}


def run(
    config: Any, iterations: int, restore: Any = None, save: Any = None
) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """The figures of every iteration, and the weights at the end."""
    algorithm = config.copy(copy_frozen=False).build_algo()
    try:
        if restore is not None:
            algorithm.restore_from_path(str(restore))
        results = [figures(algorithm.train()) for _ in range(iterations)]
        if save is not None:
            algorithm.save_to_path(str(save))
        return results, weights(algorithm)
    finally:
        algorithm.stop()
