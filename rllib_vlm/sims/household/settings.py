"""The arguments of the household environment, checked all at once."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal, get_args

import numpy as np

from rllib_vlm.errors import ConfigErrors, SimulatorError, did_you_mean, unlisted
from rllib_vlm.sims.household.catalogue import LIMITS
from rllib_vlm.sims.household.rewards import REWARD_MODES, RewardMode, RewardWeights, reward_weights
from rllib_vlm.sims.household.tasks import MAX_STEPS, TASKS, TaskName
from rllib_vlm.sims.household.world import Split
from rllib_vlm.sims.tasks import CURRICULA, STARTS, Start

ObservationMode = Literal["vision", "text", "both"]
OBSERVATION_MODES: tuple[ObservationMode, ...] = get_args(ObservationMode)
Told = Literal["all", "task_relevant"]
TOLD: tuple[Told, ...] = get_args(Told)
SPLITS: tuple[Split, ...] = get_args(Split)
WORLDS = {"embedded": "rllib_vlm.sims.household.embedded:EmbeddedWorld"}
_MOST_SEEDS = 2**62
_CAMERA_PIXELS = (16, 4096)
RESET_OPTIONS = ("split", "level", "task", "start", "house", "tour")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Checked arguments of `Household`."""

    split: Split
    tasks: tuple[TaskName, ...]
    house: dict[str, Any]  # arguments of the house generator
    house_seeds: tuple[int, int]
    observation: ObservationMode
    camera_size: tuple[int, int]
    reward: RewardMode
    weights: RewardWeights
    max_steps: dict[TaskName, int]
    start: Start
    curriculum: str | None
    world: str
    told: Told
    questions: int
    seen_pixels: float
    blank_images: bool


def check_settings(
    *, split: Any, tasks: Any, rooms: Any, furniture: Any, items: Any, house_seeds: Any, observation: Any,
    camera_size: Any, reward: Any, weights: Any, max_steps: Any, start: Any, curriculum: Any, world: Any,
    told: Any, questions: Any, seen_pixels: Any, blank_images: Any,
) -> Settings:  # fmt: skip
    """All arguments, checked.

    Raises:
        ConfigErrors: with every problem found.
    """
    problems: list[str] = []

    def choice(name: str, value: Any, known: Iterable[str]) -> None:
        problems.extend(unlisted(name, value, known))

    def pair(name: str, value: Any, low: int, high: int) -> tuple[int, int]:
        match _whole_numbers(value):
            case [first, second] if low <= first <= second <= high:
                return first, second
        problems.append(f"{name}={value!r} is not a pair (least, most) of whole numbers from {low} to {high}")
        return low, high

    choice("split", split, SPLITS)
    if tasks is None:
        tasks = ()
    names = (tasks,) if isinstance(tasks, str) or not isinstance(tasks, Iterable) else tuple(tasks)
    if not names:
        problems.append(f"tasks is empty. Known: {', '.join(TASKS)}")
    for name in names:
        choice("tasks", name, TASKS)
    choice("observation", observation, OBSERVATION_MODES)
    choice("told", told, TOLD)
    choice("reward", reward, REWARD_MODES)
    choice("start", start, STARTS)
    choice("world", world, WORLDS)
    if curriculum is not None:
        choice("curriculum", curriculum, CURRICULA)
    house: dict[str, Any] = {"rooms": pair("rooms", rooms, *LIMITS["rooms"])}
    if furniture is not None:
        house["furniture"] = pair("furniture", furniture, *LIMITS["furniture"])
    if items is not None:
        house["items"] = pair("items", items, 1, LIMITS["items"][1])
    if house["rooms"][1] < 2 and any(name in names for name in ("RoomNav", "RoomVisit")):
        problems.append(f"rooms={rooms!r}: RoomNav and RoomVisit need houses of at least 2 rooms")
    seeds = pair("house_seeds", house_seeds, 0, _MOST_SEEDS)
    if seeds[0] == seeds[1]:
        problems.append(f"house_seeds={house_seeds!r} is empty: (first, one after the last)")
    if isinstance(questions, bool) or not isinstance(questions, int) or questions < 0:
        problems.append(f"questions={questions!r} is not a whole number from 0 up")
    if (
        isinstance(seen_pixels, bool)
        or not isinstance(seen_pixels, int | float)
        or not 1 <= seen_pixels < inf
    ):
        problems.append(f"seen_pixels={seen_pixels!r} is not a number from 1 up")
    if not isinstance(blank_images, bool):
        problems.append(f"blank_images={blank_images!r} is not true or false")
    size = _camera_size(camera_size, problems)
    checked_weights, wrong = reward_weights(weights)
    problems += wrong
    steps = _max_steps(max_steps, problems)
    if problems:
        raise ConfigErrors("Household", problems)
    return Settings(
        split=split, tasks=names, house=house, house_seeds=seeds, observation=observation, camera_size=size,
        reward=reward, weights=checked_weights, max_steps=steps, start=start, curriculum=curriculum, world=world,
        told=told, questions=questions, seen_pixels=float(seen_pixels), blank_images=blank_images,
    )  # fmt: skip


def house_seed(given: Any) -> int | None:
    """The option `house` of `reset`, checked.

    Raises:
        SimulatorError: it is no whole number from 0 up.
    """
    if given is None:
        return None
    try:
        seed = -1 if isinstance(given, bool) else operator.index(given)
    except TypeError:
        seed = -1
    if seed < 0:
        raise SimulatorError(f"house={given!r} is no house seed: give a whole number from 0 up")
    return seed


def _camera_size(given: Any, problems: list[str]) -> tuple[int, int]:
    least, most = _CAMERA_PIXELS
    match _whole_numbers(given):
        case [width, height] if least <= min(width, height) and max(width, height) <= most:
            return width, height
    problems.append(f"camera_size={given!r} is not (width, height), each {least} to {most} pixels")
    return least, least


def _whole_numbers(given: Any) -> list[int]:
    """The members of a sequence of whole numbers; an empty list for all else."""
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        return []
    if not all(isinstance(v, int | np.integer) and not isinstance(v, bool) for v in given):
        return []
    return [int(v) for v in given]


def _max_steps(given: Any, problems: list[str]) -> dict[TaskName, int]:
    """SPOC's step limits with the given ones (one number, or one per task) laid over them."""
    limits = dict(MAX_STEPS)
    if given is None:
        return limits
    if not isinstance(given, Mapping):
        given = dict.fromkeys(TASKS, given)
    for name, limit in given.items():
        if name not in limits:
            problems.append(
                f"max_steps has no {name!r}.{did_you_mean(str(name), TASKS)} Known: {', '.join(TASKS)}"
            )
        elif isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            problems.append(f"max_steps {limit!r} for {name} is not a whole number from 1 up")
        else:
            limits[name] = limit
    return limits
