"""Tune's schedulers and search algorithms, and Ray's loggers, by name with checked keywords."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ray.tune.error import TuneError

from rllib_vlm.config.schema import Plugin
from rllib_vlm.errors import MissingExtraError, RLlibVLMError, UnknownNameError, did_you_mean

# Ray's own logger callbacks, but for wandb's, which may lose the end of a short offline run.
LOGGERS = {
    "wandb": "rllib_vlm.callbacks.trackers:WandbLogger",
    "mlflow": "ray.air.integrations.mlflow:MLflowLoggerCallback",
    "comet": "ray.air.integrations.comet:CometLoggerCallback",
    "aim": "ray.air.integrations.aim:AimLoggerCallback",
}


def make_scheduler(plugin: Plugin, config_keys: Mapping[str, Any]) -> Any:
    """The Tune scheduler `plugin` names: asha, hyperband, pbt, pb2, median_stopping_rule, fifo, ...

    PBT's `hyperparam_mutations` may be written by section (`training.lr`) or by keyword (`lr`).

    Raises:
        RLlibVLMError: an unknown name or keyword, or a mutation of something that is no setting.
    """
    from ray.tune.schedulers import SCHEDULER_IMPORT, ASHAScheduler

    table = {**SCHEDULER_IMPORT, "asha": ASHAScheduler}
    kwargs = dict(plugin.kwargs)
    if "hyperparam_mutations" in kwargs:
        kwargs["hyperparam_mutations"] = _mutations(kwargs["hyperparam_mutations"], config_keys)
    return _make("scheduler", plugin.type.lower(), table, kwargs)


def make_searcher(plugin: Plugin) -> Any:
    """The Tune search algorithm `plugin` names: random, optuna, hyperopt, ...

    Raises:
        RLlibVLMError: an unknown name or keyword, or its package is not installed.
    """
    from ray.tune.search import SEARCH_ALG_IMPORT

    return _make("search", plugin.type.lower(), SEARCH_ALG_IMPORT, plugin.kwargs)


def make_loggers(entries: list[str | dict[str, dict[str, Any]]]) -> list[Any]:
    """The logger callbacks for `loggers: [wandb, {mlflow: {experiment_name: x}}]`.

    Raises:
        RLlibVLMError: an unknown name or keyword, or its package is not installed.
    """
    callbacks = []
    for entry in entries:
        for name, kwargs in ({entry: {}} if isinstance(entry, str) else entry).items():
            callbacks.append(_make("loggers", name, {n: _logger(n) for n in LOGGERS}, kwargs))
    return callbacks


def _logger(name: str) -> Callable[[], Any]:
    def load() -> Any:
        from importlib import import_module

        module, _, attribute = LOGGERS[name].partition(":")
        return getattr(import_module(module), attribute)

    return load


def _make(what: str, name: str, table: Mapping[str, Any], kwargs: Mapping[str, Any]) -> Any:
    if name not in table:
        raise UnknownNameError(what, name, table)
    entry = table[name]
    maker = entry() if inspect.isfunction(entry) else entry  # Ray's tables import some classes late
    known = [p for p in inspect.signature(maker).parameters.values() if p.name != "self"]
    if not any(p.kind is p.VAR_KEYWORD for p in known):
        names = [p.name for p in known]
        for key in kwargs:
            if key not in names:
                raise RLlibVLMError(
                    f"{what}: {name} takes no {key!r}.{did_you_mean(key, names)} It takes: {', '.join(names)}."
                )
    try:
        return maker(**kwargs)
    except (ImportError, RuntimeError, AssertionError) as error:
        if isinstance(error, ImportError) or "install" in str(error):
            extra = "trackers" if what == "loggers" else name
            if extra == "trackers":
                raise MissingExtraError(f"logger {name!r}", extra) from error
        raise RLlibVLMError(f"{what}: {name}: {error}") from error
    except (TypeError, ValueError, TuneError) as error:
        raise RLlibVLMError(f"{what}: {name}: {error}") from error


def _mutations(mutations: Any, config_keys: Mapping[str, Any]) -> Any:
    if not isinstance(mutations, dict):
        raise RLlibVLMError(f"scheduler: hyperparam_mutations must be a mapping, not {mutations!r}")
    renamed = {}
    for name, values in mutations.items():
        key = name.rpartition(".")[2]
        if key not in config_keys:
            raise RLlibVLMError(
                f"scheduler: hyperparam_mutations: {name!r} is no setting.{did_you_mean(key, config_keys)}"
            )
        renamed[key] = values
    return renamed
