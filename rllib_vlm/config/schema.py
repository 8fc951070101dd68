"""The frame around an experiment: RLlib's old YAML frame, checked with pydantic.

NAME:
  include: [models/tiny, hardware/cpu_2]          # fragments under the values below; one level deep
  run: VLMPPO                                     # a name of ours, of RLlib's, or package.module:Class
  env: spoc                                       # a simulator, a Gymnasium id, or package.module:Class
  stop: {training_iteration: 40}                  # ends a trial when any of them is reached
  num_samples: 4
  metric: evaluation/success
  mode: max
  scheduler: {type: asha, max_t: 40}
  search: {type: optuna}
  checkpoint_config: {checkpoint_frequency: 5, num_to_keep: 2, checkpoint_at_end: true}
  loggers: [wandb, {mlflow: {experiment_name: spoc}}]
  max_failures: 0
  config:
    SECTION: {keyword: value}                     # builder methods of the algorithm's config class
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rllib_vlm.config.document import Document, Path
from rllib_vlm.errors import did_you_mean


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Plugin(BaseModel):
    """A scheduler, search algorithm or logger by name, with the keywords of its class."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str

    @property
    def kwargs(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class Checkpoints(_Strict):
    """Tune's CheckpointConfig, with defaults an interrupted run can be resumed from."""

    num_to_keep: Annotated[int, Field(ge=1)] | None = 2
    checkpoint_score_attribute: str | None = None
    checkpoint_score_order: Literal["max", "min"] = "max"
    checkpoint_frequency: Annotated[int, Field(ge=0)] = 10
    checkpoint_at_end: bool = True


class Frame(_Strict):
    """One experiment, all but its `config`, which `sections` checks."""

    run: str
    env: str | None = None
    include: list[str] = []
    stop: dict[str, int | float | bool] = {}
    num_samples: Annotated[int, Field(ge=1)] = 1
    max_concurrent_trials: Annotated[int, Field(ge=1)] | None = None
    time_budget_s: Annotated[float, Field(gt=0)] | None = None
    metric: str | None = None
    mode: Literal["max", "min"] | None = None
    scheduler: Plugin | None = None
    search: Plugin | None = None
    checkpoint_config: Checkpoints = Checkpoints()
    loggers: list[str | dict[str, dict[str, Any]]] = []
    max_failures: Annotated[int, Field(ge=-1)] = 0
    config: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        """`scheduler: asha` for `{type: asha}`, `config:` with nothing below it for `{}`, and so on."""
        if not isinstance(data, dict):
            return data
        data = {k: v for k, v in data.items() if v is not None}
        for key in ("scheduler", "search"):
            if isinstance(data.get(key), str):
                data[key] = {"type": data[key]}
        for key in ("include", "loggers"):
            if isinstance(data.get(key), str):
                data[key] = [data[key]]
        return data

    @field_validator("stop")
    @classmethod
    def _reachable(cls, stop: dict[str, Any]) -> dict[str, Any]:
        if wrong := [problem for name, value in stop.items() if (problem := stop_problem(name, value))]:
            raise ValueError("; ".join(wrong))
        return stop

    @model_validator(mode="after")
    def _whole(self) -> Frame:
        scheduler = self.scheduler
        ranks = (
            scheduler is not None and scheduler.type.lower() != "fifo" and "metric" not in scheduler.kwargs
        )
        if scheduler is not None and ranks and self.metric is None:
            raise ValueError(f"scheduler {scheduler.type!r} needs `metric:` and `mode:` to rank trials by")
        if (self.metric is None) != (self.mode is None):
            raise ValueError(
                "`metric:` and `mode:` belong together, such as metric: evaluation/success, mode: max"
            )
        return self


_COUNTED = ("training_iteration", "num_env_steps_sampled_lifetime", "time_total_s")


def stop_problem(name: str, value: Any) -> str | None:
    """Why a run could not end, or would at once, by this condition; None where it can."""
    if not math.isfinite(value):
        return f"stop: {name} is {value}, which no metric reaches"
    if name in _COUNTED and (isinstance(value, bool) or value <= 0):
        return f"stop: {name} is {value!r}, not a number above 0"
    return None


FRAME_KEYS = tuple(Frame.model_fields)


def check_frame(document: Document, errors: list[str]) -> Frame | None:
    """The frame of one experiment, or None with every mistake added to `errors`."""
    try:
        return Frame.model_validate(document.data)
    except ValidationError as error:
        errors += _messages(document, error.errors())
        return None


def _messages(document: Document, details: list[Any]) -> list[str]:
    """One message per place: what a union's members each had to say is joined."""
    by_place: dict[Path, list[Any]] = {}
    for detail in details:
        path = _place(document.data, detail["loc"])
        by_place.setdefault(path, []).append(detail)
    for path in list(by_place):  # `loggers.1` has nothing to add to what `loggers.1.wandb` says
        if any(other[: len(path)] == path and len(other) > len(path) > 0 for other in by_place):
            del by_place[path]
    return [_message(document, path, group) for path, group in by_place.items()]


def _message(document: Document, path: Path, details: list[Any]) -> str:
    mark, dotted, kind = document.mark(path), ".".join(map(str, path)), details[0]["type"]
    if kind == "extra_forbidden":
        known = tuple(Checkpoints.model_fields) if path[0] == "checkpoint_config" else FRAME_KEYS
        return f"{mark}: unknown key {path[-1]!r}.{_hint(str(path[-1]), known)}"
    if kind == "missing":
        return f"{mark}: `{'.'.join(map(str, details[0]['loc']))}:` is missing"
    if kind == "model_type":
        return f"{mark}: {dotted or 'an experiment'} must be a mapping of keys, not {details[0]['input']!r}"
    texts = [d["msg"].removeprefix("Value error, ").removeprefix("Input should be ") for d in details]
    if kind == "value_error":
        return f"{mark}: {texts[0]}"
    return f"{mark}: {dotted} must be {' or '.join(dict.fromkeys(texts))}, not {details[0]['input']!r}"


def _hint(name: str, known: tuple[str, ...]) -> str:
    hint = did_you_mean(name, known)
    if not hint and known is FRAME_KEYS:
        hint = " Sections such as `training:` belong under `config:`."
    return f"{hint} Known: {', '.join(known)}."


def _place(data: Any, location: tuple[Any, ...]) -> Path:
    """The part of pydantic's location that stands in the file; the rest names members of a union."""
    path: list[str | int] = []
    for key in location:
        if (isinstance(data, dict) and key in data) or (isinstance(data, list) and isinstance(key, int)):
            data = data[key]
        elif key == location[-1] and len(path) == len(location) - 1:
            break  # a missing key: its parent is the place
        else:
            continue
        path.append(key)
    return tuple(path)
