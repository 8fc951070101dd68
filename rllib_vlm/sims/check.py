"""Machine-checks that a simulator keeps its contract, whatever it simulates."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_vlm.errors import SimulatorError
from rllib_vlm.sims.base import Info, Observation, Simulator

_TURNS = 4  # turns of the random episodes that are compared
_MOST_STEPS = 3000  # an episode of random actions should have ended by then


def check_simulator(
    make: Callable[[], Simulator],
    *,
    options: Sequence[dict[str, Any]] = ({}, {"split": "heldout"}),
    episode_end: bool = True,
) -> None:
    """Plays a few short episodes and checks the contract of `Simulator`.

    Checked: names and number of actions; observations lie in their space; the same seed and options
    give the same episode, also in a second instance; different seeds give different ones; a turn
    is its steps, and its observation the last step's; `idle` is a turn; the info of `reset` and of
    the last step; `make` can be pickled; `close` may be called twice.

    Args:
        make: makes the simulator; must be picklable (subprocesses make their own).
        options: each is checked as the `options` of `reset`.
        episode_end: whether to play on with random actions until an episode ends.

    Raises:
        SimulatorError: with every problem found.
    """
    problems: list[str] = []
    _check_maker(make, problems)
    simulator, other = make(), make()
    try:
        _check_actions(simulator, problems)
        for given in options:
            _check_reset(simulator, other, dict(given), problems)
            _check_turns(simulator, other, dict(given), problems)
        if episode_end:
            _check_end(simulator, problems)
    finally:
        for each in (simulator, other):
            _close_twice(each, problems)
    if problems:
        lines = "\n".join(f"  {i}. {p}" for i, p in enumerate(dict.fromkeys(problems), 1))
        raise SimulatorError(f"{type(simulator).__name__} breaks the contract of a simulator:\n{lines}")


def _check_maker(make: Callable[[], Simulator], problems: list[str]) -> None:
    try:
        pickle.dumps(make)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        problems.append(f"its maker cannot be pickled, so no subprocess can make it: {error}")


def _check_actions(simulator: Simulator, problems: list[str]) -> None:
    space, names = simulator.action_space, simulator.actions.names
    if not simulator.description.strip():
        problems.append("description is empty: the system prompt needs it")
    if simulator.actions.is_text:
        if not isinstance(space, gym.spaces.Text):
            problems.append(f"action_space is {space}, not a Text as its free-text actions ask")
        return
    if not isinstance(space, gym.spaces.Discrete) or int(space.n) != len(names) or int(space.start) != 0:
        problems.append(
            f"action_space is {space}, not Discrete({len(names)}) as its {len(names)} action names ask"
        )
    if len(set(names)) != len(names):
        problems.append("two actions have the same name")
    for name in names:
        if simulator.actions.resolve(name) != name:
            problems.append(
                f"action name {name!r} does not resolve to itself (use lower case, no blanks around)"
            )
    for alias, name in simulator.actions.aliases.items():
        if name not in names:
            problems.append(f"alias {alias!r} stands for {name!r}, which is no action")


def _check_observation(
    simulator: Simulator, observation: Observation, when: str, problems: list[str]
) -> None:
    if not simulator.observation_space.contains(observation):
        shapes = {k: getattr(v, "shape", v) for k, v in observation.items()}
        problems.append(f"observation after {when} is not in observation_space: {shapes}")


def _check_reset(
    simulator: Simulator, other: Simulator, options: dict[str, Any], problems: list[str]
) -> None:
    given = copy.deepcopy(options)
    first, info = simulator.reset(seed=1, options=options)
    if options != given:
        problems.append(f"reset changes the options it is given: {given} became {options}")
    _check_observation(simulator, first, "reset", problems)
    if not isinstance(info.get("instruction"), str) or not info["instruction"].strip():
        problems.append(f"info of reset has no instruction: {info.get('instruction')!r}")
    different, different_info = simulator.reset(seed=2, options=dict(options))
    again, again_info = simulator.reset(seed=1, options=dict(options))
    elsewhere, elsewhere_info = other.reset(seed=1, options=dict(options))
    for name, second, second_info in (
        ("a second reset", again, again_info), ("another instance", elsewhere, elsewhere_info),
    ):  # fmt: skip
        if not same(first, second) or not same(info, second_info):
            problems.append(f"{name} with the same seed and options {options} starts another episode")
    if same(first, different) and same(info, different_info):
        problems.append(f"seeds 1 and 2 start the same episode (options {options})")


def _check_turns(
    simulator: Simulator, other: Simulator, options: dict[str, Any], problems: list[str]
) -> None:
    """The same random actions as turns in one instance and as steps in the other."""
    rng = np.random.default_rng(0)
    _, begun = simulator.reset(seed=3, options=dict(options))
    _check_state(begun, begun, "reset", problems)
    other.reset(seed=3, options=dict(options))
    names = _some_actions(simulator)
    for _ in range(_TURNS):
        actions = [names[int(k)] for k in rng.integers(len(names), size=int(rng.integers(1, 4)))]
        turn = simulator.turn(actions)
        steps = _by_steps(other, actions)
        _check_observation(simulator, turn[0], f"turn {actions}", problems)
        _check_step(turn, f"turn {actions}", problems)
        _check_state(turn[4], begun, f"turn {actions}", problems)
        if not np.isclose(turn[1], steps[1]):
            problems.append(f"turn {actions} is rewarded {turn[1]}, its steps {steps[1]}")
        if turn[2:4] != steps[2:4]:
            problems.append(
                f"turn {actions} ends {turn[2:4]} (terminated, truncated), its steps {steps[2:4]}"
            )
        # Texts may tell what happened in the whole turn; pictures show where it led.
        if not same(turn[0].get("images"), steps[0].get("images")):
            problems.append(f"turn {actions} ends with other images than its steps do")
        if turn[2] or turn[3]:
            return
    idle = simulator.turn([])
    _check_step(idle, "a turn without actions", problems)
    _check_state(idle[4], begun, "a turn without actions", problems)


def _some_actions(simulator: Simulator) -> Sequence[str]:
    """All names; or of free text the example its set gives, and what models write that know no better."""
    actions = simulator.actions
    if not actions.is_text:
        return actions.names
    example = json.dumps(dict(actions.fields))
    return (example, example[: len(example) // 2], "{}", "[]", "null", "no JSON", "", "\ud800" * 3)


def _env_action(simulator: Simulator, action: str) -> int | str:
    return action if simulator.actions.is_text else simulator.actions.index(action)


def _by_steps(simulator: Simulator, actions: Sequence[str]) -> tuple[Observation, float, bool, bool, Info]:
    total = 0.0
    for name in actions:
        observation, reward, terminated, truncated, info = simulator.step(_env_action(simulator, name))
        total += float(reward)
        if terminated or truncated:
            break
    return observation, total, terminated, truncated, info


def _check_step(step: tuple[Observation, float, bool, bool, Info], when: str, problems: list[str]) -> None:
    _, reward, terminated, truncated, info = step
    if not np.isfinite(reward):
        problems.append(f"{when} is rewarded {reward}")
    for name, value in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(value, bool):
            problems.append(f"{name} after {when} is a {type(value).__name__}, not a bool")
    if terminated or truncated:
        _check_last_info(info, when, problems)


def _check_state(info: Info, before: Info, when: str, problems: list[str]) -> None:
    """`state` is left out, or the same names always; `before` is the info of the reset."""
    state, names = info.get("state"), before.get("state")
    if (state is None) != (names is None):
        problems.append(f"info has a state after {'reset' if state is None else when} alone")
        return
    if state is None:
        return
    if not isinstance(state, dict) or not isinstance(names, dict) or state.keys() != names.keys():
        problems.append(f"info['state'] after {when} has other names than after reset: {state!r}, {names!r}")
        return
    wrong = {k: v for k, v in state.items() if not isinstance(v, float) or not np.isfinite(v)}
    if wrong:
        problems.append(f"values of info['state'] after {when} that are no finite float: {wrong}")


def _check_last_info(info: Info, when: str, problems: list[str]) -> None:
    if not isinstance(info.get("success"), bool):
        problems.append(f"info after the last step ({when}) has no bool 'success': {info.get('success')!r}")
    metrics = info.get("metrics")
    if not isinstance(metrics, dict):
        problems.append(f"info after the last step ({when}) has no dict 'metrics': {metrics!r}")
        return
    wrong = {k: v for k, v in metrics.items() if not isinstance(v, float) or not np.isfinite(v)}
    if wrong:
        problems.append(f"metrics that are no finite float: {wrong}")


def _check_end(simulator: Simulator, problems: list[str]) -> None:
    """Random actions until an episode ends."""
    rng = np.random.default_rng(1)
    simulator.reset(seed=4)
    names = _some_actions(simulator)
    for _ in range(_MOST_STEPS):
        step = simulator.step(_env_action(simulator, names[int(rng.integers(len(names)))]))
        if step[2] or step[3]:
            _check_step(step, "a random episode", problems)
            _check_observation(simulator, step[0], "the last step", problems)
            return
    problems.append(f"a random episode has not ended after {_MOST_STEPS} steps")


def _close_twice(simulator: Simulator, problems: list[str]) -> None:
    try:
        simulator.close()
        simulator.close()
    except Exception as error:  # noqa: BLE001  (whatever it is, it is the finding)
        problems.append(f"close() raises when called twice: {type(error).__name__}: {error}")


def same(a: Any, b: Any) -> bool:
    """Whether two observations, infos or parts of them are equal, arrays element by element."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return bool(np.array_equal(a, b))
    return bool(a == b)
