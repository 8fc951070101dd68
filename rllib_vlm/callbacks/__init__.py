"""What watches a run: results.json, a gallery of episodes, gauges for the Ray dashboard.

Each is a row of the registry's table `callbacks` and named in a YAML as `callbacks: [report, gallery, metrics]`,
with its options as `callbacks: [report, {gallery: {every: 5}}]`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from rllib_vlm import registry
from rllib_vlm.errors import RLlibVLMError, did_you_mean


def configured(name: str, /, **options: Any) -> Callable[[], Any]:
    """A callback with options, for `AlgorithmConfig.callbacks`: `configured("gallery", every=5)`.

    Args:
        name: a name of the table `callbacks`, or a dotted path.
        **options: keyword arguments of the callback's class.

    Raises:
        UnknownNameError: there is no such callback.
        RLlibVLMError: it takes no such option, or the option has a value it cannot have.
    """
    callback = registry.resolve("callbacks", name)
    parameters = inspect.signature(callback).parameters.values()
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    known = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for option in options:
        if option not in known and not takes_any:
            raise RLlibVLMError(
                f"callbacks: {name} takes no {option!r}.{did_you_mean(option, known)} "
                f"It takes: {', '.join(known) or '(nothing)'}."
            )
    try:
        callback(**options)  # a bad value is told here, not in a worker
    except (TypeError, ValueError) as error:
        raise (
            error if isinstance(error, RLlibVLMError) else RLlibVLMError(f"callbacks: {name}: {error}")
        ) from error
    return partial(callback, **options)
