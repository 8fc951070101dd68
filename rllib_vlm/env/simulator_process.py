"""A simulator behind a pipe: the program a subprocess slot runs.

It loads no torch and no Ray. Requests and replies are tuples whose first item is their kind::

    parent -> child   (factory,)                                      once, at the start
    child  -> parent  ("ready", SimulatorSpec)
    parent -> child   ("reset", seed, options, expert_max_actions)    0 asks for no expert
    parent -> child   ("turn", actions, Said or None)
    child  -> parent  ("reset" | "turn", SlotStep)   or   ("error", text)
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import gymnasium as gym

from rllib_vlm import registry
from rllib_vlm.sims.base import Expert, Info, Observation, Simulator
from rllib_vlm.types import ActionSet, Demonstration, Said

_PARENT_CHECK_S = 1.0


@dataclass(frozen=True, slots=True)
class SimulatorFactory:
    """Makes one simulator; travels to the process that will run it.

    `env` is a name of the table `simulators`, a dotted path `package.module:Name`, or what makes one.
    """

    env: str | Callable[..., Simulator]
    config: dict[str, Any]

    def __call__(self) -> Simulator:
        make = registry.resolve("simulators", self.env) if isinstance(self.env, str) else self.env
        simulator: Simulator = make(**self.config)
        return simulator


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorSpec:
    """What the prompt layer and RLlib need to know of a simulator without holding one."""

    actions: ActionSet
    description: str
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotStep:
    """The outcome of a reset or of a turn."""

    observation: Observation
    info: Info
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    demonstration: Demonstration | None = None  # the expert's next turn, where one was asked for
    wall_s: float = 0.0  # seconds inside the simulator, expert included


class SimulatorHost:
    """A simulator with its expert; what both kinds of slots drive."""

    def __init__(self, factory: SimulatorFactory) -> None:
        self.simulator = factory()
        self._expert: Expert | None = None
        self._wants_expert = False

    @property
    def spec(self) -> SimulatorSpec:
        return SimulatorSpec(
            actions=self.simulator.actions,
            description=self.simulator.description,
            observation_space=self.simulator.observation_space,
            action_space=self.simulator.action_space,
        )

    def reset(self, seed: int, options: dict[str, Any], expert_max_actions: int) -> SlotStep:
        start = time.perf_counter()
        observation, info = self.simulator.reset(seed=seed, options=options)
        self._wants_expert = expert_max_actions > 0
        self._expert = self.simulator.expert(max_actions=expert_max_actions) if self._wants_expert else None
        demonstration = self._demonstrate()
        wall_s = time.perf_counter() - start
        return SlotStep(observation=observation, info=info, demonstration=demonstration, wall_s=wall_s)

    def turn(self, actions: Sequence[str], said: Said | None = None) -> SlotStep:
        start = time.perf_counter()
        if said is not None:
            self.simulator.hear(said)
        observation, reward, terminated, truncated, info = self.simulator.turn(actions)
        demonstration = None if terminated or truncated else self._demonstrate()
        return SlotStep(
            observation=observation,
            info=info,
            reward=float(reward),
            terminated=bool(terminated),
            truncated=bool(truncated),
            demonstration=demonstration,
            wall_s=time.perf_counter() - start,
        )

    def close(self) -> None:
        self.simulator.close()

    def _demonstrate(self) -> Demonstration | None:
        if not self._wants_expert:
            return None
        # A simulator without an expert answers like an expert that gives up.
        return self._expert() if self._expert is not None else Demonstration(actions=())


def serve(connection: Connection) -> None:
    """Answers requests until the other end is closed."""
    host: SimulatorHost | None = None
    try:
        (factory,) = connection.recv()
        host = SimulatorHost(factory)
        connection.send(("ready", host.spec))
        while True:
            kind, *arguments = connection.recv()
            step = host.reset(*arguments) if kind == "reset" else host.turn(*arguments)
            connection.send((kind, step))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent closed the pipe, or is gone
    except Exception:  # noqa: BLE001  whatever a simulator raises ends this process, and is reported
        connection.send(("error", traceback.format_exc(limit=8)))
    finally:
        if host is not None:
            host.close()
        connection.close()


def _exit_with_parent(parent: int) -> None:
    """Ends this process when its parent is gone, even where the simulator never reads the pipe again."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    os._exit(1)


def main(argv: Sequence[str]) -> None:
    """Runs in the new process, with the descriptor of its pipe and the process id of its parent."""
    descriptor, parent = int(argv[0]), int(argv[1])
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    serve(Connection(descriptor))
