"""A frozen lake that repeats in its infos what it heard before each turn."""

from __future__ import annotations

from collections.abc import Sequence

from rllib_vlm.sims.base import Info, Observation
from rllib_vlm.sims.frozen_lake import FrozenLake
from rllib_vlm.types import Said


class ListeningLake(FrozenLake):
    heard: Said | None = None

    def hear(self, said: Said) -> None:
        self.heard = said

    def turn(self, actions: Sequence[str]) -> tuple[Observation, float, bool, bool, Info]:
        *outcome, info = super().turn(actions)
        heard, self.heard = self.heard, None
        return (*outcome, {**info, "heard": heard})
