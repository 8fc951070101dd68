"""A simulator of which one in many is slow. It imports little: each runs in a process of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from rllib_vlm.sims.base import Info, Observation
from rllib_vlm.sims.frozen_lake import FrozenLake


class SlowLake(FrozenLake):
    """A frozen lake whose turns take `seconds` in the first process that claims `claim`, and no time elsewhere."""

    def __init__(self, *, seconds: float, claim: str, **lake: Any) -> None:
        super().__init__(**lake)
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            seconds = 0.0
        self._seconds = seconds

    def turn(self, actions: Sequence[str]) -> tuple[Observation, float, bool, bool, Info]:
        time.sleep(self._seconds)
        return super().turn(actions)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        observation, info = super().reset(seed=seed, options=options)
        return observation, {**info, "slow": self._seconds > 0}
