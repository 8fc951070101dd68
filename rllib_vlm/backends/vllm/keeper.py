"""Where an engine that starts finds the weights of the present policy, however many updates ago it died."""

from __future__ import annotations

from rllib_vlm.backends.vllm.messages import PolicyWeights


class WeightKeeper:
    """An actor that outlives the engines: it holds a reference to the weights, not the weights."""

    def __init__(self) -> None:
        self._weights: PolicyWeights | None = None
        self._starts: dict[int, int] = {}  # of each engine

    def put(self, weights: PolicyWeights) -> None:
        """From now on engines start with these."""
        self._weights = weights

    def start(self, engine: int) -> PolicyWeights:
        """The weights for the engine of this number, which starts: for the first time, or since it died."""
        self._starts[engine] = self._starts.get(engine, 0) + 1
        assert self._weights is not None  # put before any engine is made
        return self._weights

    def num_restarts(self) -> int:
        """How often engines had to be started again."""
        return sum(self._starts.values()) - len(self._starts)
