"""What a file says, ready to run: the algorithm's class and config, and everything Tune needs beside them."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from typing import Any

from rllib_vlm import registry
from rllib_vlm.config.document import Document, Path
from rllib_vlm.config.plugins import make_loggers, make_scheduler, make_searcher
from rllib_vlm.config.samplers import to_tune
from rllib_vlm.config.schema import Checkpoints, Plugin, check_frame
from rllib_vlm.config.sections import (
    apply_sections,
    check_env_config,
    environment_class,
    import_object,
    sections,
)
from rllib_vlm.errors import ConfigErrors, RLlibVLMError, UnknownNameError, closest

# Variants of a search space that are put through the algorithm's own validation before anything starts.
VARIANTS_CHECKED = 64
_VALUE_DEPTH = 3  # config, section, keyword
# What attributes begin with whose section has another name: `simulator_process` is `process` of `simulation`.
_STEMS = {"simulation": "simulator", "learners": "learner", "env_runners": "env_runner"}


@dataclass(slots=True)
class Experiment:
    """One experiment.

    `config` is the `AlgorithmConfig`, Tune's samplers still in it; `env` is the name it was given as,
    for registration with Ray. Everything else is Tune's.
    """

    name: str
    algorithm: type
    config: Any
    env: str | None = None
    stop: dict[str, float] = field(default_factory=dict)
    num_samples: int = 1
    max_concurrent_trials: int | None = None
    time_budget_s: float | None = None
    metric: str | None = None
    mode: str | None = None
    scheduler: Any = None
    search: Any = None
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    loggers: list[Any] = field(default_factory=list)
    max_failures: int = 0
    source: str = ""


def algorithm_class(name: str) -> type:
    """The Algorithm `run:` means: a name of ours, `package.module:Class`, or one of RLlib's own.

    Raises:
        UnknownNameError: there is none of that name.
        RLlibVLMError: the path points at nothing.
    """
    if name in registry.names("algorithms"):
        return registry.resolve("algorithms", name)
    if ":" in name:
        return _algorithm(name)
    from ray.rllib.algorithms.registry import ALGORITHMS

    if name in ALGORITHMS:
        return ALGORITHMS[name]()[0]
    known = registry.names("algorithms")
    hint = "RLlib's own names (PPO, ...) and a path 'package.module:Class' work too."
    raise UnknownNameError("algorithms", name, known, hint=hint)


def _algorithm(path: str) -> type:
    from ray.rllib.algorithms.algorithm import Algorithm

    found = import_object(path)
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise RLlibVLMError(f"{path!r} is no subclass of RLlib's Algorithm")
    return found


def build_experiment(name: str, document: Document, errors: list[str], *, source: str) -> Experiment | None:
    """The experiment `document` describes, or None with every mistake in it added to `errors`."""
    before = len(errors)
    frame = check_frame(document, errors)
    run = frame.run if frame else document.data.get("run") if isinstance(document.data, dict) else None
    if not isinstance(run, str):
        return None
    known = True
    try:
        algorithm = algorithm_class(run)
    except RLlibVLMError as error:
        errors.append(f"{document.mark(('run',))}: run: {error}")
        meant = closest(run, registry.names("algorithms"))
        if meant is None:
            return None
        algorithm, known = algorithm_class(meant), False  # so that what else is wrong is told at once
    config = algorithm.get_default_config()  # type: ignore[attr-defined]
    env = document.data.get("env")
    if isinstance(env, str):
        _set_env(config, env, document, errors)
    elif env is None and "simulation" in sections(type(config)):
        errors.append(f"{document.mark(())}: `env:` is missing: a simulator's name, or package.module:Class")
    if isinstance(document.data.get("config"), dict):
        apply_sections(config, document, ("config",), errors)
    # Without a fragment, what it would have said seems to be missing, and by another algorithm's rules much is.
    check_variants(config, document, errors, whole=not document.errors and known)
    if frame is None:
        return None
    experiment = Experiment(
        name=name,
        algorithm=algorithm,
        config=config,
        env=frame.env,
        stop=dict(frame.stop),
        num_samples=frame.num_samples,
        max_concurrent_trials=frame.max_concurrent_trials,
        time_budget_s=frame.time_budget_s,
        metric=frame.metric,
        mode=frame.mode,
        checkpoints=frame.checkpoint_config,
        max_failures=frame.max_failures,
        source=source,
    )
    keys = config.to_dict()
    experiment.scheduler = _plugin("scheduler", frame.scheduler, document, errors, keys)
    experiment.search = _plugin("search", frame.search, document, errors, keys)
    experiment.loggers = _try(lambda: make_loggers(frame.loggers), ("loggers",), document, errors) or []
    return experiment if len(errors) == before else None


def check_variants(config: Any, document: Document, errors: list[str], *, whole: bool = True) -> None:
    """Resolves the first variants of the search space as Tune will, and lets the algorithm validate each.

    Of a document that is not `whole`, only what is said of a value that stands in it counts.
    """
    from ray.tune.search.variant_generator import generate_variants

    seen = set()
    variants = generate_variants(config.to_dict())
    for values, resolved in itertools.islice(variants, VARIANTS_CHECKED):
        try:
            config.copy(copy_frozen=False).update_from_dict(resolved).validate()
        except Exception as error:  # noqa: BLE001  (whatever validation refuses is a mistake in the file)
            at = f" at {_variant(values)}" if values else ""
            for message in (
                error.errors if isinstance(error, ConfigErrors) else [str(error) or type(error).__name__]
            ):
                message = " ".join(message.split("To suppress all validation errors")[0].split())
                place = _blame(document, message)
                if message not in seen and (whole or len(place) >= _VALUE_DEPTH):
                    seen.add(message)
                    errors.append(f"{document.mark(place)}: config{at}: {message}")


def _blame(document: Document, message: str) -> Path:
    """The path of the value a validation message is about, or of the whole experiment.

    Our own messages begin with the keyword they are about and name what is below it; RLlib's name keywords
    anywhere. A keyword may go by the attribute it becomes: `warm_start_updates` for `updates` of `warm_start`.
    """
    words = re.findall(r"\w+", re.split(r" Did you mean | Known: | A dotted path ", message)[0])
    keywords: dict[str, Path] = {}
    for path in document.marks:
        if path[:1] == ("config",) and len(path) == 3:
            for stem in (path[1], _STEMS.get(str(path[1]))):
                keywords[f"{stem}_{path[2]}"] = path
            # `lr` alone is that of `training`: the attributes of other sections are longer.
            if path[1] == "training" or str(path[2]) not in keywords:
                keywords[str(path[2])] = path
    attributes = [w for w in words if w in keywords]
    if not attributes:
        return ("env",) if words[:1] == ["env"] else ()
    found = keywords[attributes[0] if attributes[0] == words[0] else max(attributes, key=len)]
    for word in words:
        if (*found, word) in document.marks:
            found = (*found, word)
    return found


def _variant(values: dict[tuple[str, ...], Any]) -> str:
    return ", ".join(f"{'.'.join(map(str, path))}={value}" for path, value in values.items())


def _set_env(config: Any, env: str, document: Document, errors: list[str]) -> None:
    try:
        environment_class(env)
    except RLlibVLMError as error:
        errors.append(f"{document.mark(('env',))}: {error}")
        return
    config.environment(env=env)
    if "simulation" in sections(type(config)):
        return  # such a config asks the simulator itself
    check_env_config(env, document, ("config", "environment", "env_config"), errors)
    check_env_config(env, document, ("config", "evaluation", "evaluation_config", "env_config"), errors)


def _plugin(
    what: str, plugin: Plugin | None, document: Document, errors: list[str], keys: dict[str, Any]
) -> Any:
    if plugin is None:
        return None
    before = len(errors)
    converted = {k: to_tune(document, (what, k), errors) for k in plugin.kwargs}
    if len(errors) > before:
        return None
    whole = Plugin.model_construct(type=plugin.type)
    whole.__pydantic_extra__ = converted
    if what == "scheduler":
        return _try(lambda: make_scheduler(whole, keys), (what,), document, errors)
    return _try(lambda: make_searcher(whole), (what,), document, errors)


def _try(make: Any, path: Path, document: Document, errors: list[str]) -> Any:
    try:
        return make()
    except RLlibVLMError as error:
        errors.append(f"{document.mark(path)}: {error}")
        return None
