"""The words of a diagnosis: what a check looks for, what it has seen, and what to change then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rllib_vlm.diagnosis.curves import Curves, Mask, in_words


@dataclass(frozen=True, slots=True)
class Change:
    """A setting of the experiment file to change.

    Args:
        setting: its name below `config:`, such as "training.lr".
        to: what to make of it, and why.
        done: whether its present value is so already; the advice is left out then.
    """

    setting: str
    to: str
    done: Callable[[Any], bool] = lambda value: False


@dataclass(frozen=True, slots=True)
class Seen:
    """What a check has seen: the figures in words, and the updates that are suspicious."""

    message: str
    where: Mask  # [updates]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that goes wrong with runs, and how it is seen."""

    name: str
    title: str
    looks_at: tuple[str, ...]  # metrics
    see: Callable[[Curves], Seen | None]
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A check that has seen what it looks for."""

    name: str
    title: str
    message: str
    looks_at: tuple[str, ...]
    where: Mask
    numbers: tuple[int, ...]  # of the suspicious updates
    changes: tuple[
        tuple[Change, Any], ...
    ]  # with the present value; `UNKNOWN` where the records do not tell it

    @property
    def updates(self) -> str:
        return in_words(self.numbers)


UNKNOWN = object()


def examine(check: Check, updates: Curves, settings: Mapping[str, Any]) -> Finding | None:
    """What `check` says of a run; advice that the run follows already is left out."""
    seen = check.see(updates)
    if seen is None:
        return None
    present = [(change, present_value(settings, change.setting)) for change in check.changes]
    return Finding(
        name=check.name,
        title=check.title,
        message=seen.message,
        looks_at=check.looks_at,
        where=seen.where,
        numbers=tuple(int(n) for n in updates.numbers[seen.where]),
        changes=tuple((c, value) for c, value in present if value is UNKNOWN or not c.done(value)),
    )


def present_value(settings: Mapping[str, Any], setting: str) -> Any:
    """A setting of the experiment file in the flat settings that a trial records.

    Those of some sections have the section's name before them, and those of the model are in one of their own.
    """
    section, _, name = setting.partition(".")
    if setting.startswith("rl_module.model_config."):
        model = settings.get("_model_config")
        key = name.removeprefix("model_config.")
        return model.get(key, UNKNOWN) if isinstance(model, Mapping) else UNKNOWN
    for key in (name or section, f"{section}_{name}", f"simulator_{name}"):
        if key in settings:
            return settings[key]
    return UNKNOWN
