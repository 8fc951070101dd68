"""How weights reach an env runner: what learns after every update, what is frozen once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray.rllib.core import DEFAULT_MODULE_ID


@dataclass(frozen=True, slots=True)
class FrozenWeights:
    """Weights that no update changes, which a runner reads once."""

    key: str  # of these weights: others have another
    ref: ray.ObjectRef | None  # {name: array}; None where there are none


class WeightsReader:
    """Tells what of the weights a runner is sent is new to it."""

    def __init__(self) -> None:
        self._frozen_key = ""  # of the frozen weights that were read

    def read(
        self, weights: Any, frozen: FrozenWeights | None, *, version: int, present: int
    ) -> dict[str, Any] | None:
        """What to load, by name; None where the weights of `version` are there already.

        Args:
            weights: all, or those that learn; maybe a reference to them.
            frozen: where the others are.
            version: of the weights, 0 for those before any update.
            present: version of those there are.
        """
        lacks_frozen = frozen is not None and frozen.key != self._frozen_key
        if version and version == present and not lacks_frozen:
            return None
        if isinstance(weights, ray.ObjectRef):
            weights = ray.get(weights)
        own: dict[str, Any] = weights.get(DEFAULT_MODULE_ID, weights)
        if frozen is not None and lacks_frozen:
            own = {**own, **(ray.get(frozen.ref) if frozen.ref is not None else {})}
            self._frozen_key = frozen.key
        return own
