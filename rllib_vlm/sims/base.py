"""What a simulator is: a Gymnasium environment that also knows its actions by name.

A simulator knows no tokens, no prompts and no Ray. It says in words who acts and what the actions
are (`description`, `actions`), gives each episode an instruction, and may bring an expert.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NotRequired, Protocol, TypedDict

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rllib_vlm.errors import UnknownNameError
from rllib_vlm.types import ActionSet, Demonstration, Said

Info = dict[str, Any]


class Observation(TypedDict):
    """One observation. Text-only simulators leave `images` out of their space and observations."""

    text: str  # may be empty; what the model reads beside the images
    images: NotRequired[NDArray[np.uint8]]  # [n, H, W, 3] RGB


class Expert(Protocol):
    """Answers turns of the simulator it was made for, from that simulator's present state."""

    def __call__(self) -> Demonstration:
        """The expert's next turn. An expert that gives up answers with no actions."""


class Simulator(gym.Env[Observation, Any]):
    """Base of every simulator.

    `info` after `reset` holds `instruction` (str). `info` after the last step of an episode holds
    `success` (bool) and `metrics` (dict of float: whatever this simulator reports per episode). A simulator
    whose every step has `metrics`, of the episode so far, reports episodes too that the limit of turns cuts.
    `options` of `reset` may hold `split` (one of `splits`) and `level` (0.0 to 1.0, how far a
    curriculum has come); the same seed and options always give the same episode. `info` may hold an `anchor`, a
    name for the present state, by which siblings find out that they were in the same one (GiGPO), and a `state`: a
    dict of float, the same names after each reset and turn, of what tells how well things stand, seen or unseen. It
    is for baselines (`fitted_gae`), never for a policy. `info` of a turn whose answers were graded may hold `grades`,
    one for each: `attempt` (1 for the first at the present decision), `correct` (bool), `verdict` (a word).
    Evaluation suites count them.

    Actions are names, numbered in their order for `step`, or free text (`ActionSet(fields=...)`), which `step` is
    given as the model wrote it and reads itself: `rllib_vlm.json_object.read_object`. `action_space` then is a
    `gym.spaces.Text`.
    """

    actions: ClassVar[ActionSet]
    reset_options: ClassVar[tuple[str, ...] | None] = None  # names that `reset` knows; None: anything
    splits: ClassVar[tuple[str, ...]] = ("train", "heldout")  # values of the option `split`
    description: ClassVar[str]  # for the system prompt: who acts, in what world, what each action does

    @classmethod
    def check_config(cls, config: Mapping[str, Any]) -> None:
        """Checks arguments of the constructor without starting anything, so that a run is refused early.

        Whoever overrides this raises `ConfigErrors` with every problem; the base accepts everything.
        """

    def known_options(self, options: Mapping[str, Any] | None) -> dict[str, Any]:
        """The options of a `reset`, a copy.

        Raises:
            UnknownNameError: one is not among `reset_options`.
        """
        for name in options or {}:
            if self.reset_options is not None and name not in self.reset_options:
                raise UnknownNameError(f"{type(self).__name__}.reset options", name, self.reset_options)
        return dict(options or {})

    @abstractmethod
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """Starts an episode.

        Every simulator has its own and begins it with `super().reset(seed=seed)`, as in Gymnasium:
        that seeds `np_random`, and what it returns means nothing.
        """
        return super().reset(seed=seed, options=options)

    @abstractmethod
    def step(self, action: Any) -> tuple[Observation, float, bool, bool, Info]: ...

    def hear(self, said: Said) -> None:
        """Called before the turn of an answer, with the answer's own words. Those who grade actions alone ignore it.

        Not every turn has an answer: an expert's actions may come without one.
        """

    def turn(self, actions: Sequence[str]) -> tuple[Observation, float, bool, bool, Info]:
        """Executes several named actions as one turn; rewards add up, and the episode's end cuts the rest.

        No actions at all (an invalid answer) is a turn in which nothing is done: simulators that
        count time override `idle`. Simulators whose observations are dear (rendering) override
        this method to observe once, at the end of the turn.
        """
        if not actions:
            return self.idle()
        total = 0.0
        for name in actions:
            action = name if self.actions.is_text else self.actions.index(name)
            observation, reward, terminated, truncated, info = self.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info

    @abstractmethod
    def idle(self) -> tuple[Observation, float, bool, bool, Info]:
        """A turn without a valid action: time passes (it counts as one step), nothing moves."""

    def expert(self, *, max_actions: int = 1) -> Expert | None:
        """An expert for the episode that was just reset, or None where there is none."""
        return None
