"""Arguments of benchmarks: `name=number`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rllib_vlm.errors import RLlibVLMError, UnknownNameError


def numbers(benchmark: str, arguments: Sequence[str], defaults: Mapping[str, int]) -> dict[str, int]:
    """The defaults, and what `arguments` put in their place.

    Raises:
        UnknownNameError: an argument of another name.
        RLlibVLMError: a value that is no whole number of 1 or more.
    """
    given = dict(defaults)
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name not in defaults:
            raise UnknownNameError(f"arguments of {benchmark}", name, defaults)
        if not value.isdecimal() or int(value) < 1:
            raise RLlibVLMError(f"{argument}: not a whole number of 1 or more, e.g. {name}={defaults[name]}")
        given[name] = int(value)
    return given
