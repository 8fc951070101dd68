"""Sections of `config:` are the builder methods of the algorithm's config class; their keywords are its keys.

`AlgorithmConfig.update_from_dict` would take any misspelt key without a word, builder methods are strict:
so a section is applied as `getattr(config, section)(**keywords)`, after its keys were looked up in the
signatures. A section that an algorithm adds (`generation`, `prompting`) is known by that alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import gymnasium as gym

from rllib_vlm import registry
from rllib_vlm.config.document import Document, Path
from rllib_vlm.config.samplers import contains_sampler, is_sampler, to_tune
from rllib_vlm.errors import RLlibVLMError, did_you_mean

# Public methods that return a config and need no argument, yet build nothing.
_NOT_SECTIONS = frozenset({"copy"})
# Keywords that take a class: written as a name or `package.module:Class`.
_CLASS_KEYS = frozenset({"callbacks_class", "env_runner_cls", "learner_class", "evaluation_callbacks"})


def sections(config_class: type) -> dict[str, tuple[str, ...]]:
    """Every section of `config_class` with its keywords, such as `{"training": ("lr", ...), ...}`."""
    return {
        name: keywords
        for name, method in inspect.getmembers(config_class, inspect.isfunction)
        if not name.startswith("_") and name not in _NOT_SECTIONS and _is_builder(config_class, method)
        if (keywords := tuple(_keywords(config_class, name)))
    }


def apply_sections(config: Any, document: Document, prefix: Path, errors: list[str]) -> None:
    """Applies the sections below `prefix` of `document` to `config`, in the order they are written."""
    known = sections(type(config))
    values = document.data
    for key in prefix:
        values = values[key]
    for section in values:
        path = (*prefix, section)
        if section not in known:
            errors.append(f"{document.mark(path)}: {_unknown_section(section, known)}")
            continue
        if values[section] is None:
            continue
        section_document, path = _long_form(document, path, section)
        keywords = section_document.data
        for key in path:
            keywords = keywords[key]
        if not isinstance(keywords, dict):
            errors.append(
                f"{document.mark(path)}: {section}: takes keywords ({', '.join(known[section][:4])}, ...), "
                f"not {keywords!r}"
            )
            continue
        unknown = [k for k in keywords if k not in known[section]]
        errors += [f"{document.mark((*path, k))}: {_unknown_key(section, k, known)}" for k in unknown]
        if not unknown:
            _apply(config, section, section_document, path, errors)


def _apply(config: Any, section: str, document: Document, path: Path, errors: list[str]) -> None:
    before = len(errors)
    written = document.data
    for key in path:
        written = written[key]
    keywords = to_tune(document, path, errors)
    for key in _CLASS_KEYS & keywords.keys():
        try:
            keywords[key] = _classes(keywords[key])
        except RLlibVLMError as error:
            errors.append(f"{document.mark((*path, key))}: {key}: {error}")
    if len(errors) > before:
        return
    try:
        getattr(config, section)(**keywords)
    except Exception as error:  # noqa: BLE001  (whatever a builder refuses is a mistake in the file)
        reason = str(error).strip() or type(error).__name__
        if contains_sampler(written):
            reason += " (this keyword may not take a sampler)"
        errors.append(f"{document.mark(_blame(document, path, keywords, reason))}: {section}: {reason}")


def _blame(document: Document, path: Path, keywords: dict[str, Any], reason: str) -> Path:
    """The keyword an error message names, so that it points at that line rather than at the section."""
    named = [k for k in keywords if k in reason]
    return (*path, max(named, key=len)) if named else path


def _long_form(document: Document, path: Path, section: str) -> tuple[Document, Path]:
    """`callbacks: [a, b]` for `callbacks: {callbacks_class: [a, b]}`."""
    value = document.data
    for key in path:
        value = value[key]
    if section == "callbacks" and isinstance(value, str | list):
        mark = document.mark(path)
        return Document({"callbacks_class": value}, {(): mark, ("callbacks_class",): mark}), ()
    return document, path


def _classes(value: Any) -> Any:
    if isinstance(value, list):
        return [_classes(v) for v in value]
    if isinstance(value, str):
        return import_object(value, table="callbacks" if "callbacks" in registry.TABLES else None)
    return value


def import_object(name: str, *, table: str | None = None) -> Any:
    """What `name` means: a row of the registry's `table`, `package.module:Attribute` or `package.module.Attribute`.

    Raises:
        RLlibVLMError: there is no such row, module or attribute.
    """
    if table is not None and ("." not in name or name in registry.names(table)):
        return registry.resolve(table, name)
    module, separator, attribute = name.partition(":")
    if not separator:
        module, _, attribute = name.rpartition(".")
    if not module or not attribute:
        raise RLlibVLMError(f"{name!r} is not a path to a class; write it as 'package.module:Class'")
    try:
        return getattr(import_module(module), attribute)
    except ImportError as error:
        raise RLlibVLMError(f"{name!r}: cannot import {module!r}: {error}") from error
    except AttributeError as error:
        raise RLlibVLMError(f"{name!r}: module {module!r} has no {attribute!r}") from error


def check_env_config(env: str, document: Document, path: Path, errors: list[str]) -> None:
    """Checks the keys of `env_config` against the constructor they will be passed to."""
    values = document.data
    for key in path:
        if not isinstance(values, dict) or key not in values:
            return
        values = values[key]
    if not isinstance(values, dict) or is_sampler(values):
        return
    try:
        maker = environment_class(env)
    except RLlibVLMError:
        return  # said already, about `env` itself
    known = _constructor_keywords(maker)
    if known is None:
        return
    for key in values:
        if key not in known:
            errors.append(
                f"{document.mark((*path, key))}: env_config: {env!r} takes no {key!r}."
                f"{did_you_mean(key, known)} It takes: {', '.join(known) or 'nothing'}."
            )


def environment_class(env: str) -> Any:
    """The class or function that makes `env`: a simulator's name, a Gymnasium id, or a dotted path.

    Raises:
        RLlibVLMError: there is none.
    """
    if env in registry.names("simulators"):
        return registry.resolve("simulators", env)
    if env in gym.registry:
        maker = gym.registry[env].entry_point
        return import_object(maker) if isinstance(maker, str) else maker
    if ":" in env or ("." in env and "-v" not in env):
        return import_object(env)
    known = registry.names("simulators")
    raise RLlibVLMError(
        f"env {env!r} is no simulator and no Gymnasium id.{did_you_mean(env, [*known, *gym.registry])} "
        f"Simulators: {', '.join(known)}. A path 'package.module:Class' works too."
    )


def _constructor_keywords(maker: Any) -> tuple[str, ...] | None:
    """The keywords `maker` takes, or None where it takes any."""
    names: dict[str, None] = {}
    chain = maker.__mro__ if inspect.isclass(maker) else [maker]
    for layer in chain:
        function = vars(layer).get("__init__") if inspect.isclass(layer) else layer
        if function is None or layer is object:
            continue
        parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
        names.update(
            (p.name, None) for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        )
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return tuple(names)
    return None  # every layer passes **kwargs on: nothing can be said


def _is_builder(config_class: type, method: Any) -> bool:
    signature = inspect.signature(method)
    annotation = str(signature.return_annotation)
    returns_itself = "Self" in annotation or any(c.__name__ in annotation for c in config_class.__mro__[:-1])
    optional = all(
        p.default is not p.empty or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        for p in list(signature.parameters.values())[1:]
    )
    return returns_itself and optional


def _keywords(config_class: type, section: str) -> Iterator[str]:
    """The keywords of a builder method; `**kwargs` hands the rest on to the class above."""
    seen = set()
    for layer in config_class.__mro__:
        method = vars(layer).get(section)
        if method is None:
            continue
        parameters = list(inspect.signature(method).parameters.values())[1:]
        for p in parameters:
            named = p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
            # RLlib keeps keywords it no longer takes, with the default -1, only to raise an error.
            gone = method.__module__.startswith("ray.") and p.default == -1
            if named and p.name not in seen and not gone:
                seen.add(p.name)
                yield p.name
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return


def _unknown_section(section: str, known: dict[str, tuple[str, ...]]) -> str:
    message = f"unknown section {section!r} of `config:`."
    homes = [name for name, keys in known.items() if section in keys]
    if homes:
        return f"{message} `{section}` belongs under {_under(homes)}."
    hint = did_you_mean(section, known)
    if hint:
        return f"{message}{hint}"
    return f"{message} Known: {', '.join(known)}."


def _unknown_key(section: str, key: str, known: dict[str, tuple[str, ...]]) -> str:
    message = f"{section}: unknown key {key!r}."
    homes = [name for name, keys in known.items() if key in keys]
    if homes:
        return f"{message} `{key}` belongs under {_under(homes)}."
    hint = did_you_mean(key, known[section])
    if hint:
        return f"{message}{hint}"
    elsewhere = {k: name for name, keys in known.items() for k in keys}
    hint = did_you_mean(key, elsewhere)
    if hint:
        nearest = hint.split("'")[1]
        return f"{message}{hint[:-1]}, under {_under([elsewhere[nearest]])}?"
    return f"{message} Known: {', '.join(known[section])}."


def _under(homes: list[str]) -> str:
    return " or ".join(f"`{home}:`" for home in homes)
