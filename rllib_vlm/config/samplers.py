"""`{loguniform: [1e-6, 1e-4]}` -> `tune.loguniform(1e-6, 1e-4)`, anywhere a value stands."""

from __future__ import annotations

import inspect
import math
from typing import Any

from rllib_vlm.config.document import SAMPLER_NAMES, Document, Path


def is_sampler(value: Any) -> bool:
    """Whether `value` is written as one of Tune's samplers: a mapping with one key, its name."""
    return isinstance(value, dict) and len(value) == 1 and next(iter(value)) in SAMPLER_NAMES


def contains_sampler(value: Any) -> bool:
    """Whether `value` is or holds a sampler at any depth."""
    if is_sampler(value):
        return True
    if isinstance(value, dict):
        return any(map(contains_sampler, value.values()))
    return isinstance(value, list) and any(map(contains_sampler, value))


def to_tune(document: Document, path: Path, errors: list[str]) -> Any:
    """The value at `path` with every sampler replaced by Tune's object; what is wrong goes to `errors`."""
    value = document.data
    for key in path:
        value = value[key]
    return _convert(value, document, path, errors)


def _convert(value: Any, document: Document, path: Path, errors: list[str]) -> Any:
    if is_sampler(value):
        name, arguments = next(iter(value.items()))
        try:
            return _sampler(name, arguments)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            errors.append(
                f"{document.mark(path)}: {'.'.join(map(str, path))}: {{{name}: {arguments}}}: {error}"
            )
            return None
    if isinstance(value, dict):
        return {k: _convert(v, document, (*path, k), errors) for k, v in value.items()}
    if isinstance(value, list):
        return [_convert(v, document, (*path, i), errors) for i, v in enumerate(value)]
    return value


def _sampler(name: str, arguments: Any) -> Any:
    from ray import tune

    if name in ("grid_search", "choice"):
        if not isinstance(arguments, list) or not arguments:
            raise ValueError("needs a list with at least one value")
        return getattr(tune, name)(arguments)
    maker = getattr(tune, name)
    parameters = inspect.signature(maker).parameters
    form = f"[{', '.join(parameters)}]"
    if isinstance(arguments, dict):
        unknown = [k for k in arguments if k not in parameters]
        if unknown:
            raise ValueError(f"does not know {', '.join(unknown)}; write {{{name}: {form}}}")
        bound = dict(arguments)
    elif isinstance(arguments, list) and len(arguments) <= len(parameters):
        bound = dict(zip(parameters, arguments, strict=False))
    else:
        raise ValueError(f"needs {form}")
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in bound]
    if missing:
        raise ValueError(f"needs {form}; {', '.join(missing)} missing")
    for key, number in bound.items():
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{key} must be a number, not {number!r}")  # noqa: TRY004  (one error type)
        if not math.isfinite(number):
            raise ValueError(f"{key} must be a finite number, not {number!r}")
        if "randint" in name and not isinstance(number, int):
            raise ValueError(f"{key} must be a whole number, not {number!r}")
        if key == "q" and number <= 0:
            raise ValueError(f"q, the step between values, must be above 0, not {number!r}")
    low, high = bound.get("lower"), bound.get("upper")
    if low is not None and high is not None and low >= high:
        raise ValueError(f"lower ({low}) must be below upper ({high})")
    return maker(**bound)
