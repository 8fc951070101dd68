"""`check_simulator` passes a sound simulator and names every way in which a broken one is broken."""

from functools import partial
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest

from rllib_vlm.errors import SimulatorError
from rllib_vlm.json_object import read_object
from rllib_vlm.sims.base import Info, Observation, Simulator
from rllib_vlm.sims.check import check_simulator
from rllib_vlm.types import ActionSet

Step = tuple[Observation, float, bool, bool, Info]


class Counting(Simulator):
    """Count to a secret number."""

    actions: ClassVar[ActionSet] = ActionSet(names=("up", "wait"))
    description = "You count."

    def __init__(self) -> None:
        self.action_space = gym.spaces.Discrete(2)
        self.observation_space = gym.spaces.Dict({"text": gym.spaces.Text(20)})  # type: ignore[assignment]

    def _observe(self) -> Observation:
        return {"text": f"at{self.count}"}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        super().reset(seed=seed)
        self.goal, self.count, self.steps = int(self.np_random.integers(5, 100)), 0, 0
        return self._observe(), {"instruction": f"count to {self.goal}"}

    def step(self, action: int) -> Step:
        self.steps += 1
        self.count += action == 0
        success, late = bool(self.count == self.goal), self.steps >= 300
        info: Info = {}
        if success or late:
            info = {"success": success, "metrics": {"steps": float(self.steps)}}
        return self._observe(), float(action == 0), success, late and not success, info

    def idle(self) -> Step:
        return self.step(1)


def test_a_sound_simulator_passes() -> None:
    check_simulator(Counting)


class Telling(Counting):
    """Counts to what it is told."""

    actions = ActionSet(fields={"by": 2})

    def __init__(self) -> None:
        super().__init__()
        self.action_space = gym.spaces.Text(100)

    def step(self, action: str) -> Step:
        try:
            wait = read_object(action)["by"].value != 2
        except (ValueError, KeyError):
            wait = True
        return super().step(int(wait))

    def idle(self) -> Step:
        return self.step("")


def test_a_sound_simulator_of_free_text_passes() -> None:
    check_simulator(Telling)


def test_free_text_needs_a_space_of_texts() -> None:
    with pytest.raises(SimulatorError, match="not a Text"):
        check_simulator(Numbered)


class Numbered(Telling):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = gym.spaces.Discrete(2)


class Unseeded(Counting):
    def reset(self, **kwargs: Any) -> tuple[Observation, Info]:
        super().reset(**kwargs)
        self.count = int(np.random.default_rng().integers(1 << 40))
        return self._observe(), {"instruction": "count"}


class SameEpisode(Counting):
    def reset(self, **kwargs: Any) -> tuple[Observation, Info]:
        return super().reset(seed=0)


class OutOfSpace(Counting):
    def _observe(self) -> Observation:
        return {"text": "?" * 30}


class WrongNames(Counting):
    actions = ActionSet(names=("Up", "wait", "wait"), aliases={"x": "jump"})


class DearTurn(Counting):
    def turn(self, actions: Any) -> Step:
        step = super().turn(actions)
        return (step[0], step[1] + 1.0, *step[2:])


class NoInstruction(Counting):
    def reset(self, **kwargs: Any) -> tuple[Observation, Info]:
        return super().reset(**kwargs)[0], {}


class NoMetrics(Counting):
    def step(self, action: int) -> Step:
        step = super().step(action)
        return (*step[:4], {})


class ChangesOptions(Counting):
    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Observation, Info]:
        if options is not None:
            options["mine"] = 1
        return super().reset(seed=seed)


class Endless(Counting):
    def step(self, action: int) -> Step:
        step = super().step(action)
        return step[0], step[1], False, False, {}


class ClosesOnce(Counting):
    open = True

    def close(self) -> None:
        if not self.open:
            raise RuntimeError("closed")
        self.open = False


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (Unseeded, "starts another episode"),
        (SameEpisode, "seeds 1 and 2 start the same episode"),
        (OutOfSpace, "not in observation_space"),
        (WrongNames, "no action"),
        (DearTurn, "its steps"),
        (NoInstruction, "no instruction"),
        (NoMetrics, "no dict 'metrics'"),
        (ChangesOptions, "changes the options"),
        (Endless, "has not ended"),
        (ClosesOnce, "close() raises"),
    ],
)
def test_a_broken_simulator_is_named(broken: type[Simulator], complaint: str) -> None:
    with pytest.raises(SimulatorError) as error:
        check_simulator(broken)
    assert complaint in str(error.value)


def test_all_problems_at_once() -> None:
    with pytest.raises(SimulatorError) as error:
        check_simulator(WrongNames)
    for complaint in ("Discrete(3)", "same name", "'Up' does not resolve", "'jump'"):
        assert complaint in str(error.value)


def test_a_maker_that_cannot_be_pickled() -> None:
    check_simulator(partial(Counting))
    with pytest.raises(SimulatorError, match="pickled"):
        check_simulator(lambda: Counting())


def test_reset_of_the_base_seeds_as_gymnasiums_does() -> None:
    first, second = Counting(), Counting()
    assert Simulator.reset(first, seed=3) is None  # what it returns means nothing
    gym.Env.reset(second, seed=3)
    assert first.np_random.integers(1 << 40) == second.np_random.integers(1 << 40)
