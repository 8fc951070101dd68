"""Sections of `config:` are the builder methods of the algorithm's config class; their keywords are its keys.

`AlgorithmConfig.update_from_dict` would take any misspelt key without a word, builder methods are strict:
so a section is applied as `getattr(config, section)(**keywords)`, after its keys were looked up in the
signatures. A section that an algorithm adds (`generation`, `prompting`) is known by that alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

import gymnasium as gym

from rllib_vlm import registry
from rllib_vlm.callbacks import configured
from rllib_vlm.config.document import SAMPLER_NAMES, Document, Path
from rllib_vlm.config.samplers import contains_sampler, is_sampler, to_tune
from rllib_vlm.errors import RLlibVLMError, did_you_mean

# Public methods that return a config and need no argument, yet build nothing.
_NOT_SECTIONS = frozenset({"copy"})
# Keywords that take a class, written as a name or `package.module:Class`, and what it must be a kind of.
_CLASS_KEYS = {
    "callbacks_class": "ray.rllib.callbacks.callbacks:RLlibCallback",
    "evaluation_callbacks": "ray.rllib.callbacks.callbacks:RLlibCallback",
    "env_runner_cls": "ray.rllib.env.env_runner:EnvRunner",
    "learner_class": "ray.rllib.core.learner.learner:Learner",
}
# Those of them whose classes may have options: `{gallery: {every: 5}}`.
_CALLBACK_KEYS = frozenset({"callbacks_class", "evaluation_callbacks"})
_SAMPLED = "training: {lr: {grid_search: [1.0e-6, 1.0e-5]}}"
# Keywords whose values RLlib takes apart before it looks at them.
_MAPPING_KEYS = frozenset({"env_config", "evaluation_config", "model_config"})


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
        if is_sampler(keywords):
            name = next(iter(keywords))
            errors.append(f"{document.mark((*path, name))}: {_unknown_key(section, name, known)}")
            continue
        unknown = [k for k in keywords if k not in known[section]]
        errors += [f"{document.mark((*path, k))}: {_unknown_key(section, k, known)}" for k in unknown]
        _apply(config, section, section_document, path, errors, leave_out=unknown)


def _apply(
    config: Any, section: str, document: Document, path: Path, errors: list[str], *, leave_out: Iterable[str]
) -> None:
    """Calls the builder method; of several keywords it refuses, each is told, and the others still arrive."""
    written = document.data
    for key in path:
        written = written[key]
    before = len(errors)
    keywords = to_tune(document, path, errors)
    for key in leave_out:
        del keywords[key]
    if len(errors) > before:
        return
    for key in _MAPPING_KEYS & keywords.keys():
        if is_sampler(written[key]):
            name = next(iter(written[key]))
            errors.append(
                f"{document.mark((*path, key))}: {key}: {name} stands for a value, not for all of {key}: "
                f"write it below the keys that vary, such as {{size: {{{name}: [...]}}}}"
            )
        elif not (keywords[key] is None or isinstance(keywords[key], dict)):
            errors.append(
                f"{document.mark((*path, key))}: {key} must be a mapping, not {keywords.pop(key)!r}"
            )
    for key in _CLASS_KEYS.keys() & keywords.keys():
        keywords[key] = _classes(keywords[key], key, document, (*path, key), errors)
    if len(errors) > before:
        return
    refused = _refusal(config, section, keywords)
    if refused is None:
        return
    alone = {k: r for k, v in keywords.items() if (r := _refusal(config, section, {k: v})) is not None}
    for key, reason in alone.items():
        if contains_sampler(written[key]):
            reason += " (this keyword may not take a sampler)"
        lead = "" if key in reason else f"{key} cannot be {written[key]!r}: "
        errors.append(f"{document.mark((*path, key))}: {section}: {lead}{reason}")
    if not alone:
        errors.append(f"{document.mark(path)}: {section}: {refused}")


def _refusal(config: Any, section: str, keywords: dict[str, Any]) -> str | None:
    """Why the builder method does not take these keywords, or None where it has taken them."""
    try:
        getattr(config, section)(**keywords)
    except Exception as error:  # noqa: BLE001  (whatever a builder refuses is a mistake in the file)
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _long_form(document: Document, path: Path, section: str) -> tuple[Document, Path]:
    """`callbacks: [a, {b: {option: 1}}]` for `callbacks: {callbacks_class: [a, {b: {option: 1}}]}`; or a mapping."""
    value = document.data
    for key in path:
        value = value[key]
    named = isinstance(value, dict) and bool(value) and value.keys() <= set(registry.names("callbacks"))
    if section == "callbacks" and (named or isinstance(value, str | list)):
        short = document.child(*path)
        marks = {("callbacks_class", *p): mark for p, mark in short.marks.items()}
        return Document({"callbacks_class": value}, {(): document.mark(path), **marks}), ()
    return document, path


def _classes(value: Any, key: str, document: Document, path: Path, errors: list[str]) -> Any:
    """The classes that `value` names, one or a list of them; what is wrong goes to `errors`."""
    if isinstance(value, list):
        found = [_classes(v, key, document, (*path, i), errors) for i, v in enumerate(value)]
        return [c for entry in found for c in (entry if isinstance(entry, list) else [entry])]
    try:
        if isinstance(value, str):
            found = import_object(value, table="callbacks" if key in _CALLBACK_KEYS else None)
            base = import_object(_CLASS_KEYS[key])
            if inspect.isclass(found) and not issubclass(found, base):
                raise RLlibVLMError(f"{value!r} is no subclass of {base.__name__}")
            if not callable(found) or inspect.isbuiltin(found):
                raise RLlibVLMError(f"{value!r} is no class but {found!r}")
            return found
        if isinstance(value, dict) and key in _CALLBACK_KEYS:
            return [_callback(name, options) for name, options in value.items()]
    except RLlibVLMError as error:
        errors.append(f"{document.mark(path)}: {key}: {error}")
    return value


def _callback(name: str, options: Any) -> Any:
    """The callback `name` with its options, checked.

    Raises:
        RLlibVLMError: there is no such callback, or it takes no such options.
    """
    if options is not None and not isinstance(options, dict):
        raise RLlibVLMError(
            f"callbacks: {name} takes options by name, {{{name}: {{option: value}}}}, not {options!r}"
        )
    found = import_object(name, table="callbacks")
    if not options:
        return found
    if name not in registry.names("callbacks"):
        name = f"{found.__module__}:{found.__qualname__}"
    return configured(name, **options)


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
    if not module or not attribute or module.startswith("."):
        raise RLlibVLMError(f"{name!r} is not a path to a class; write it as 'package.module:Class'")
    try:
        return getattr(import_module(module), attribute)
    except AttributeError as error:
        raise RLlibVLMError(f"{name!r}: module {module!r} has no {attribute!r}") from error
    except Exception as error:  # whatever a module of the user's raises while it is imported
        raise RLlibVLMError(f"{name!r}: cannot import {module!r}: {error}") from error


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
    if section in SAMPLER_NAMES:
        return f"{message} It stands for a value: write it below a section's key, such as {_SAMPLED}"
    homes = [name for name, keys in known.items() if section in keys]
    if homes:
        return f"{message} `{section}` belongs under {_under(homes)}."
    hint = did_you_mean(section, known)
    if hint:
        return f"{message}{hint}"
    return f"{message} Known: {', '.join(known)}."


def _unknown_key(section: str, key: str, known: dict[str, tuple[str, ...]]) -> str:
    message = f"{section}: unknown key {key!r}."
    if key in SAMPLER_NAMES:
        return f"{message} It stands for a value, not for a section: write it below a key, such as {_SAMPLED}"
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
