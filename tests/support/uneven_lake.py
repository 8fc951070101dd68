"""A frozen lake whose episodes differ in length, by their task."""

from __future__ import annotations

from typing import Any

from rllib_vlm.sims.base import Info, Observation
from rllib_vlm.sims.frozen_lake import FrozenLake

STEPS = (2, 4, 9)  # of the tasks with seed 0, 1 and 2, and so on in turn


class UnevenLake(FrozenLake):
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        self.max_steps = STEPS[(seed or 0) % len(STEPS)]
        return super().reset(seed=seed, options=options)
