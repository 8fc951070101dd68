"""THE table: every name a configuration may use, every group of subcommands, and where the code lives.

A row is `"name": "module:attribute"`; nothing is imported before it is asked for. The row of a simulator also holds the
evaluation suites and the subcommands that are part of it. A dotted path `my_package.my_module:MyClass` stands wherever
a name may stand, and an installed package adds rows through an entry point in the group `rllib_vlm.<table>`
(`rllib_vlm.simulators`, `rllib_vlm.suites`, ...).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from rllib_vlm.errors import MissingExtraError, RLlibVLMError, UnknownNameError


class SimulatorRow(NamedTuple):
    """A simulator and what is part of it, each by name: evaluation suites (`rllib evaluate --suite NAME`) and groups of
    subcommands (`rllib NAME ...`, Typer applications).
    """

    code: str
    suites: Mapping[str, str] = {}
    commands: Mapping[str, str] = {}


SIMULATORS = {
    "household": SimulatorRow("rllib_vlm.sims.household.env:Household"),
    "spoc": SimulatorRow("rllib_vlm.sims.household.env:Household"),
    "frozen_lake": SimulatorRow("rllib_vlm.sims.frozen_lake:FrozenLake"),
    "cards": SimulatorRow(
        "rllib_vlm.sims.cards.env:Cards", suites={"cards": "rllib_vlm.sims.cards.suite:CARDS"}
    ),
    "streetview": SimulatorRow(
        "rllib_vlm.sims.streetview.env:StreetView",
        suites={"virl": "rllib_vlm.sims.streetview.suite:VIRL"},
        commands={"data": "rllib_vlm.sims.streetview.commands:app"},
    ),
}
MODELS = {
    "qwen2_5_vl": "rllib_vlm.models.qwen2_5_vl:Qwen25VL",
    "mllama": "rllib_vlm.models.mllama:Mllama",
}
BACKENDS = {
    "hf": "rllib_vlm.backends.hf:HFBackend",
    "scripted": "rllib_vlm.backends.scripted:ScriptedBackend",
    "vllm": "rllib_vlm.backends.vllm.client:VLLMBackend",
}
CREDIT = {
    "gae": "rllib_vlm.credit.gae:TokenGAE",
    "turn_gae": "rllib_vlm.credit.turn_gae:TurnGAE",
    "bilevel_gae": "rllib_vlm.credit.bilevel_gae:BiLevelGAE",
    "grpo": "rllib_vlm.credit.grpo:GRPO",
    "rloo": "rllib_vlm.credit.rloo:RLOO",
    "gigpo": "rllib_vlm.credit.gigpo:GiGPO",
    "fitted_gae": "rllib_vlm.credit.fitted_gae:FittedGAE",
    "reinforce_pp": "rllib_vlm.credit.reinforce_pp:ReinforcePlusPlus",
}
PARSERS = {
    "no_think": "rllib_vlm.prompts.tagged:NoThink",
    "free_think": "rllib_vlm.prompts.tagged:FreeThink",
    "grounding": "rllib_vlm.prompts.tagged:Grounding",
    "worldmodeling": "rllib_vlm.prompts.tagged:WorldModeling",
    "grounding_worldmodeling": "rllib_vlm.prompts.tagged:GroundingWorldModeling",
    "json": "rllib_vlm.prompts.json_answer:JSONAnswer",
    "json_grounding": "rllib_vlm.prompts.json_answer:JSONGrounding",
}
HISTORIES = {
    "full": "rllib_vlm.prompts.history:Full",
    "last_k": "rllib_vlm.prompts.history:LastK",
    "current": "rllib_vlm.prompts.history:Current",
}
ALGORITHMS = {
    "VLMPPO": "rllib_vlm.algorithms.ppo:VLMPPO",
    "VLMGRPO": "rllib_vlm.algorithms.grpo:VLMGRPO",
    "VLMSFT": "rllib_vlm.algorithms.sft:VLMSFT",
}
CALLBACKS = {
    "report": "rllib_vlm.callbacks.report:Report",
    "gallery": "rllib_vlm.callbacks.gallery:Gallery",
    "metrics": "rllib_vlm.callbacks.metrics:Metrics",
    "guard": "rllib_vlm.guard.collapse_guard:CollapseGuard",
}

TABLES: dict[str, dict[str, str]] = {
    "simulators": {name: row.code for name, row in SIMULATORS.items()},
    "models": MODELS,
    "backends": BACKENDS,
    "credit": CREDIT,
    "parsers": PARSERS,
    "histories": HISTORIES,
    "algorithms": ALGORITHMS,
    "callbacks": CALLBACKS,
    "suites": {name: code for row in SIMULATORS.values() for name, code in row.suites.items()},
    "commands": {name: code for row in SIMULATORS.values() for name, code in row.commands.items()},
}

# Optional dependency -> the extra that brings it, for the error's way out.
_EXTRAS = {"vllm": "vllm", "deepspeed": "deepspeed", "ai2thor": "thor"}


@cache
def _plugins(table: str) -> dict[str, str]:
    return {e.name: e.value for e in entry_points(group=f"rllib_vlm.{table}")}


def names(table: str) -> list[str]:
    """Every name of `table`, ours and the installed plugins', sorted."""
    return sorted({**_plugins(table), **_rows(table)})


def resolve(table: str, name: str) -> Any:
    """The object behind `name`, imported now.

    Raises:
        UnknownNameError: no such table, or no such row in it.
        MissingExtraError: the row needs an optional dependency that is not installed.
        RLlibVLMError: the row or dotted path points at nothing.
    """
    if not isinstance(name, str):
        raise UnknownNameError(table, name, names(table))
    target = {**_plugins(table), **_rows(table)}.get(name)
    if target is None:
        if ":" not in name:
            raise UnknownNameError(
                table, name, names(table), hint="A dotted path 'package.module:Name' works too."
            )
        target = name
    module, _, attribute = target.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in _EXTRAS:
            raise MissingExtraError(f"{table} {name!r}", _EXTRAS[missing]) from error
        raise RLlibVLMError(f"{table} {name!r}: cannot import {module!r}: {error}") from error
    except RLlibVLMError:  # which says what is missing
        raise
    except AttributeError as error:
        raise RLlibVLMError(f"{table} {name!r}: module {module!r} has no {attribute!r}") from error
    except Exception as error:  # whatever a module of the user's raises while it is imported
        raise RLlibVLMError(f"{table} {name!r}: cannot import {module!r}: {error}") from error


def _rows(table: str) -> dict[str, str]:
    if table not in TABLES:
        raise UnknownNameError("registry", table, TABLES)
    return TABLES[table]
