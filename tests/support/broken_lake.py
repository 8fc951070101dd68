"""A frozen lake that fails on chosen seeds: raises, hangs, kills its own process, or fails to start."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rllib_vlm.sims.base import Info, Observation
from rllib_vlm.sims.frozen_lake import FrozenLake


class BrokenLake(FrozenLake):
    """Args: `how` ("raise", "hang", "kill"), `when` ("reset", "turn"), `every`: seeds divisible by it fail.

    With `once` (a directory), each failing seed fails one time only, in whatever process.
    """

    def __init__(
        self, *, how: str, when: str = "turn", every: int = 3, once: str | None = None, **lake: Any
    ) -> None:
        super().__init__(**lake)
        self._how, self._when, self._every, self._once = how, when, every, once
        self._seed = 1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        self._seed = seed or 0
        self._maybe_break("reset")
        return super().reset(seed=seed, options=options)

    def turn(self, actions: Sequence[str]) -> tuple[Observation, float, bool, bool, Info]:
        self._maybe_break("turn")
        return super().turn(actions)

    def _maybe_break(self, when: str) -> None:
        if when != self._when or self._seed % self._every:
            return
        if self._once is not None:
            try:  # siblings share the seed and may come here at the same time, each in its process
                (Path(self._once) / str(self._seed)).touch(exist_ok=False)
            except FileExistsError:
                return
        if self._how == "raise":
            raise RuntimeError("the ice broke")
        if self._how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait()  # for ever


class Stillborn(FrozenLake):
    """Cannot be built."""

    def __init__(self, **lake: Any) -> None:
        raise RuntimeError("no ice this year")
