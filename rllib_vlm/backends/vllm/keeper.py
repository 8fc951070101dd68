"""Where an engine that starts finds the weights of the present policy, however many updates ago it died."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rllib_vlm.backends.vllm.messages import PolicyWeights


class WeightKeeper:
    """An actor that outlives the engines: it holds a reference to the weights, not the weights."""

    def __init__(self) -> None:
        self._weights: PolicyWeights | None = None
        self._devices: tuple[str, ...] = ()  # that learn
        self._starts: dict[int, int] = {}  # of each engine
        self._changed = asyncio.Condition()

    async def put(self, weights: PolicyWeights, learner_devices: Sequence[str]) -> None:
        """From now on engines start with these."""
        async with self._changed:
            self._weights, self._devices = weights, tuple(learner_devices)
            self._changed.notify_all()

    async def start(self, engine: int) -> tuple[PolicyWeights, tuple[str, ...]]:
        """Weights, and who learns, for the engine of this number, which starts: for the first time, or since it died.

        An engine may start before there are weights, and waits for them here.
        """
        async with self._changed:
            self._starts[engine] = self._starts.get(engine, 0) + 1
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._weights is not None)
            assert self._weights is not None
            return self._weights, self._devices

    async def placed(self, count: int) -> None:
        """Returns once the processes of so many engines are there."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._starts) >= count)

    async def num_restarts(self) -> int:
        """How often engines had to be started again."""
        return sum(self._starts.values()) - len(self._starts)
