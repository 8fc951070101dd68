"""The prompt layer: turns become messages, answers become actions.

Names live in the tables `parsers` and `histories` of `rllib_vlm.registry`; the two builders here
turn a configuration's values into objects.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Mapping
from typing import Any, cast

from rllib_vlm import registry
from rllib_vlm.errors import ConfigErrors, RLlibVLMError, did_you_mean
from rllib_vlm.prompts.base import ActionParser, Exchange, HistoryPolicy

__all__ = ["ActionParser", "Exchange", "HistoryPolicy", "build_history", "build_parser", "only_grows"]


def build_parser(name: str, **options: Any) -> ActionParser:
    """The answer format `name`, e.g. `build_parser("free_think", separator="|")`.

    Raises:
        UnknownNameError: no such format.
        ConfigErrors: it has no such option, or a value is out of range.
    """
    return cast(ActionParser, _build("parsers", name, options))


def build_history(spec: str | Mapping[str, Any]) -> HistoryPolicy:
    """The history policy of `"full"`, `"current"`, `"last_4"` or `{"name": "last_k", "k": 4, ...}`.

    Raises:
        UnknownNameError: no such policy.
        ConfigErrors: an option is missing, unknown or out of range.
    """
    if isinstance(spec, str):
        last = re.fullmatch(r"last_([0-9]{1,6})", spec)
        if last:
            return cast(HistoryPolicy, _build("histories", "last_k", {"k": int(last[1])}))
        return cast(HistoryPolicy, _build("histories", spec, {}))
    if not isinstance(spec, Mapping) or "name" not in spec:
        raise ConfigErrors("history", [f"{spec!r} has no 'name': write 'last_4' or {{name: last_k, k: 4}}"])
    options = {str(key): value for key, value in spec.items() if key != "name"}
    return cast(HistoryPolicy, _build("histories", str(spec["name"]), options))


def only_grows(spec: str | Mapping[str, Any]) -> bool:
    """Whether prompts of a history go on with what the one before said; False for histories there are not."""
    with contextlib.suppress(RLlibVLMError):
        return bool(getattr(build_history(spec), "only_grows", False))
    return False


def _build(table: str, name: str, options: Mapping[str, Any]) -> object:
    """The object behind a row, its options checked by name before it is called."""
    make = registry.resolve(table, name)
    parameters = inspect.signature(make).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    errors = [
        f"no option {key!r}.{did_you_mean(key, parameters)} Known: {', '.join(parameters) or '(none)'}"
        for key in options
        if key not in parameters and not open_ended
    ]
    errors += [
        f"option {key!r} is missing"
        for key, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and key not in options
    ]
    if errors:
        raise ConfigErrors(f"{table} {name!r}", errors)
    return make(**options)
