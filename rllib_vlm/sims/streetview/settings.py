"""The arguments of the street simulator, checked all at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rllib_vlm.errors import ConfigErrors, DataError, did_you_mean, unlisted
from rllib_vlm.sims.streetview.city import CITY_DEFAULTS, CITY_MOST_ROUTES, STYLES, build_city
from rllib_vlm.sims.streetview.dataset import SPLITS, DataSet, open_folder
from rllib_vlm.sims.streetview.grading import RewardWeights, reward_weights
from rllib_vlm.sims.streetview.rail import RailSettings

Mode = Literal["fixed", "parity"]
ObservationMode = Literal["vision", "text", "both"]
ActionSetName = Literal["absolute", "relative"]
RewardMode = Literal["step", "outcome"]
LARGEST_RESOLUTION = 2048
RESET_OPTIONS = ("split", "route")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Checked arguments of `StreetView`."""

    data: DataSet
    mode: Mode
    split: str
    observation: ObservationMode
    resolution: int
    verify_iter: int
    account: bool
    rail: RailSettings
    reward: RewardMode
    weights: RewardWeights
    grade_instruction: bool

    @property
    def original(self) -> bool:
        """Whether everything is as in V-IRL, mistakes included."""
        return self.mode == "parity"


def check_settings(
    *, data: Any, city: Any, visual_ood: Any, mode: Any, split: Any, observation: Any, action_set: Any, resolution: Any,
    verify_iter: Any, account: Any, relocation: Any, drop_rate: Any, straight_line_length: Any, reward: Any,
    weights: Any, grade_instruction: Any,
) -> Settings:  # fmt: skip
    """All arguments, checked; opens the data set.

    Raises:
        ConfigErrors: with every problem found.
    """
    problems: list[str] = []

    def choice(name: str, value: Any, known: Iterable[str]) -> None:
        problems.extend(unlisted(name, value, known))

    def flag(name: str, value: Any) -> None:
        if not isinstance(value, bool):
            problems.append(f"{name}={value!r} is not true or false")

    choice("mode", mode, get_args(Mode))
    choice("split", split, SPLITS)
    choice("observation", observation, get_args(ObservationMode))
    choice("action_set", action_set, get_args(ActionSetName))
    choice("reward", reward, get_args(RewardMode))
    flag("account", account)
    flag("relocation", relocation)
    flag("grade_instruction", grade_instruction)
    if mode == "parity":
        if observation == "both":
            problems.append(
                "observation='both' is not of the original's: use 'vision' or 'text' with mode='parity'"
            )
        if grade_instruction is True or reward == "outcome" or account is False:
            problems.append(
                "grade_instruction, reward='outcome' and account=False are not of the original's: use mode='fixed'"
            )
    if not (_whole(resolution) and 16 <= resolution <= LARGEST_RESOLUTION):
        problems.append(f"resolution={resolution!r} is not a whole number from 16 to {LARGEST_RESOLUTION}")
    least = 0 if mode == "parity" else 1
    if not (_whole(verify_iter) and verify_iter >= least):
        problems.append(f"verify_iter={verify_iter!r} is not a whole number of at least {least}")
    if not (_whole(straight_line_length) and straight_line_length >= 1):
        problems.append(f"straight_line_length={straight_line_length!r} is not a whole number of at least 1")
    if not (_number(drop_rate) and 0 <= drop_rate <= 1):
        problems.append(f"drop_rate={drop_rate!r} is not a number between 0 and 1")
    problems += _weight_problems(weights)
    opened = _open(data, city, problems)
    other = _open_folder("visual_ood", visual_ood, problems) if visual_ood is not None else None
    if problems or opened is None:
        raise ConfigErrors("StreetView", problems)
    if other is not None:
        opened = opened.beside("visual_ood", other)
    return Settings(
        data=opened, mode=mode, split=split, observation=observation, resolution=resolution,
        verify_iter=verify_iter, account=account, reward=reward, weights=reward_weights(weights),
        grade_instruction=grade_instruction,
        rail=RailSettings(
            original=mode == "parity", absolute=action_set == "absolute", relocation=relocation,
            drop_rate=float(drop_rate), straight_line_length=straight_line_length,
        ),
    )  # fmt: skip


def _open(data: Any, city: Any, problems: list[str]) -> DataSet | None:
    if data is not None and city is not None:
        problems.append("data and city are both given: a data set is one or the other")
        return None
    if data is not None:
        return _open_folder("data", data, problems)
    wishes = city if city is not None else {}
    if not isinstance(wishes, Mapping):
        problems.append(f"city={city!r} is not a mapping such as {{style: nyc, routes: 64, seed: 0}}")
        return None
    before = len(problems)
    for key in wishes:
        if key not in CITY_DEFAULTS:
            known = ", ".join(CITY_DEFAULTS)
            problems.append(f"city has no {key!r}.{did_you_mean(str(key), CITY_DEFAULTS)} Known: {known}")
    given = {**CITY_DEFAULTS, **wishes}
    if not isinstance(given["style"], str) or given["style"] not in STYLES:
        problems.append(f"city.style={given['style']!r} is not one of {', '.join(STYLES)}")
    for key, low, high in (("routes", 10, CITY_MOST_ROUTES), ("seed", 0, 2**31 - 1), ("width", 128, 4096)):
        if not (_whole(given[key]) and low <= given[key] <= high):
            problems.append(f"city.{key}={given[key]!r} is not a whole number from {low} to {high}")
    if _whole(given["width"]) and given["width"] % 4:
        problems.append(f"city.width={given['width']} is not a multiple of 4, so that four views divide it")
    return None if len(problems) > before else build_city(**given)


def _open_folder(name: str, path: Any, problems: list[str]) -> DataSet | None:
    if not isinstance(path, str):
        problems.append(f"{name}={path!r} is not the path of a folder")
        return None
    try:
        return open_folder(path)
    except DataError as error:
        problems.append(f"{name}: {error}")
        return None


def _weight_problems(given: Any) -> list[str]:
    if given is None or isinstance(given, RewardWeights):
        return []
    if not isinstance(given, Mapping):
        return [f"reward_weights={given!r} is not a mapping of weights"]
    names = RewardWeights.names()
    return [
        f"reward_weights has no {k!r}.{did_you_mean(str(k), names)} Known: {', '.join(names)}"
        for k in given
        if k not in names
    ] + [f"reward_weights.{k}={v!r} is not a number" for k, v in given.items() if not _number(v)]


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
