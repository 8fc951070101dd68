"""Everything that can be said against a configuration before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from rllib_vlm import registry
from rllib_vlm.algorithms import placement
from rllib_vlm.algorithms.engine_validation import engine_errors
from rllib_vlm.algorithms.ranges import Range, check_values
from rllib_vlm.batching.mismatch import MismatchSettings
from rllib_vlm.batching.spans import REST
from rllib_vlm.core.engines.base import EngineKind, Offload
from rllib_vlm.core.optimizers import Optimizer
from rllib_vlm.core.step_guard import StepGuard
from rllib_vlm.core.update_plan import KLPlace, Reference, Schedule
from rllib_vlm.core.value_head import ValueHeadConfig
from rllib_vlm.data import open_demonstrations
from rllib_vlm.errors import ConfigErrors, RLlibVLMError, UnknownNameError, did_you_mean
from rllib_vlm.losses.kl import KLEstimator
from rllib_vlm.losses.policy import PolicyLoss
from rllib_vlm.losses.ratio import RatioLevel
from rllib_vlm.losses.reduce import Reduction
from rllib_vlm.models.precision import Precision
from rllib_vlm.prompts import build_history, build_parser
from rllib_vlm.prompts.system import uses_instruction
from rllib_vlm.sims.base import Simulator
from rllib_vlm.types import ActionSet, Demonstration

if TYPE_CHECKING:
    from rllib_vlm.algorithms.vlm_config import VLMAlgorithmConfig

T = TypeVar("T")
_AT = ("start", "warm_start_end", "final")


def check(config: VLMAlgorithmConfig) -> list[str]:
    """What is wrong with `config`, one message each; empty if nothing is.

    A message begins with the name of the setting it is about.
    """
    values = list(check_values(config))
    errors = [*values, *_names(config), *_environment(config)]
    if not values:  # these compare the values with one another
        errors += [*_model(config), *_combinations(config)]
        if not any(_attempt("engine", lambda: config.engine_bundles)):
            errors += placement.problems(config)
    return [*errors, *_evaluation(config, known=set(errors))]


def engines_of(backend: str) -> str | None:
    """What `VLMFamily.served_by` calls the engines of this backend; None where runners generate by themselves."""
    try:
        return getattr(registry.resolve("backends", backend), "served_as", None)
    except RLlibVLMError:  # unknown, or not installed: said elsewhere
        return None


def _names(c: VLMAlgorithmConfig) -> Iterator[str]:
    wrong = list(_attempt("parser", lambda: build_parser(c.parser, **c.parser_options)))
    yield from wrong
    if not wrong and isinstance(c.span_weights, dict):
        yield from _attempt("span_weights", lambda: _check_spans(c))
    yield from _attempt("history", lambda: build_history(c.history))
    yield from _attempt("template", lambda: uses_instruction(c.template))
    unknown = list(_attempt("credit", lambda: registry.resolve("credit", c.credit)))
    yield from unknown or _attempt("credit_options", lambda: _check_credit(c.credit, c.credit_options))
    unknown = list(_attempt("backend", lambda: registry.resolve("backends", c.backend)))
    yield from unknown
    if not unknown and isinstance(c.backend_options, dict):
        yield from _attempt("backend_options", lambda: _check_backend(c))
    if isinstance(c.engine, dict):
        yield from _attempt("engine", lambda: c.vllm_settings)
    if isinstance(c.mismatch, dict):
        yield from _attempt("mismatch", lambda: _check_mismatch(c))
    if isinstance(c.step_guard, dict):
        yield from _attempt("step_guard", lambda: _of_fields(StepGuard, c.step_guard, "step_guard"))
    choices: dict[str, tuple[str, ...]] = {
        "observation": ("vision", "text"),
        "simulator_process": ("inline", "subprocess"),
        "warm_start_mixing": ("turn", "episode"),
        "warm_start_precision": get_args(Precision),
        "precision": get_args(Precision),
        "prompt_precision": get_args(Precision),
        "old_logprobs": ("sampler", "learner"),
        "optimizer_type": get_args(Optimizer),
        "learner_engine": get_args(EngineKind),
        "offload_optimizer": get_args(Offload),
        "lr_schedule": get_args(Schedule),
        "warm_start_lr_schedule": get_args(Schedule),
        "kl_estimator": get_args(KLEstimator),
        "kl_in": get_args(KLPlace),
        "kl_reference": get_args(Reference),
        "policy_loss": get_args(PolicyLoss),
        "ratio_level": get_args(RatioLevel),
        "loss_reduction": get_args(Reduction),
    }
    for name, known in choices.items():
        value = getattr(c, name)
        if value not in known:
            yield f"{name} is {value!r}.{did_you_mean(str(value), known)} Known: {', '.join(known)}"
    for at in c.evaluation_at if isinstance(c.evaluation_at, list | tuple) else [c.evaluation_at]:
        if at is not None and at not in _AT:
            yield f"evaluation_at has {at!r}.{did_you_mean(str(at), _AT)} Known: {', '.join(_AT)}"
    known_names = vars(c)
    for name in c.evaluation_config if isinstance(c.evaluation_config, dict) else ():
        if name not in known_names and not hasattr(type(c), name):
            yield f"evaluation_config has no {name!r}.{did_you_mean(name, known_names)}"


def _check_backend(c: VLMAlgorithmConfig) -> None:
    options = getattr(registry.resolve("backends", c.backend), "options", None)
    if options is not None:
        _of_fields(options, c.backend_options, "the backend " + repr(c.backend))


def _check_spans(c: VLMAlgorithmConfig) -> None:
    parser = build_parser(c.parser, **c.parser_options)
    whole = Demonstration(actions=("a",), observation="o", reasoning="r", prediction="p")
    actions = ActionSet(("a",))
    known = [*parser(parser.format(whole, actions), actions, 1).spans, REST]
    for name, weight in c.span_weights.items():
        if name not in known:
            raise UnknownNameError(f"parts of the format {c.parser!r}", name, known)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
            raise RLlibVLMError(f"{name} is {weight!r}; it must be a number from 0 up")


def _of_fields(cls: type[T], options: Mapping[str, Any], what: str) -> T:
    """A dataclass from a mapping of its fields."""
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for name in options:
        if name not in known:
            raise UnknownNameError(f"options of {what}", name, known)
    return cls(**options)


def _check_mismatch(c: VLMAlgorithmConfig) -> None:
    if (
        _of_fields(MismatchSettings, c.mismatch, "mismatch").correction != "none"
        and c.old_logprobs != "learner"
    ):
        raise RLlibVLMError(
            "a correction needs old_logprobs: learner, which measures what there is to correct"
        )


def _check_credit(name: str, options: Mapping[str, Any]) -> None:
    if not isinstance(options, Mapping):
        return  # said already
    estimator = registry.resolve("credit", name)
    known = inspect.signature(estimator).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
    unknown = [] if open_ended else [k for k in options if k not in known]
    if unknown:
        raise ConfigErrors(
            f"credit {name!r}",
            [
                f"no option {k!r}.{did_you_mean(k, known)} Known: {', '.join(known) or '(none)'}"
                for k in unknown
            ],
        )
    try:
        estimator(**options)
    except TypeError as error:
        raise RLlibVLMError(f"{name} cannot use {dict(options)!r}: {error}") from error


def _environment(c: VLMAlgorithmConfig) -> Iterator[str]:
    if not isinstance(c.env, str):
        return
    yield from check_simulator(c.env, c.env_config)
    try:
        simulator = registry.resolve("simulators", c.env)
    except RLlibVLMError:
        return  # said already
    known: tuple[str, ...] | None = getattr(simulator, "reset_options", None)
    given = {"reset_options": c.reset_options, "warm_start_grounding_options": c.warm_start_grounding_options}
    if known is None:
        return
    for setting, options in given.items():
        for name in options if isinstance(options, dict) else ():
            if name not in known:
                yield f"{setting}: {c.env!r} has no {name!r}.{did_you_mean(str(name), known)} Known: {', '.join(known)}"


def check_split(simulator: Any, split: str) -> None:
    """Refuses a split that the simulator (a name or a class) does not have.

    Raises:
        UnknownNameError: it has others.
    """
    if isinstance(simulator, str) and (simulator in registry.names("simulators") or ":" in simulator):
        simulator = registry.resolve("simulators", simulator)
    known = getattr(simulator, "splits", Simulator.splits)
    if split not in known:
        raise UnknownNameError("--split", split, known)


def check_simulator(name: str, config: Any) -> Iterator[str]:
    """What is wrong with a simulator's name, and what the simulator has to say about its arguments."""
    try:
        simulator = registry.resolve("simulators", name)
    except RLlibVLMError as error:
        yield f"env: {error}"
        return
    if inspect.isclass(simulator) and not all(hasattr(simulator, n) for n in ("reset", "turn", "actions")):
        yield f"env: {name!r} is no simulator: it needs what rllib_vlm.sims.base.Simulator has"
        return
    if not isinstance(config, dict):
        return  # said already
    arguments = dict(config)  # RLlib's EnvContext is a dict with more
    known = [p for p in inspect.signature(simulator).parameters.values() if p.kind is not p.VAR_POSITIONAL]
    if not any(p.kind is p.VAR_KEYWORD for p in known):
        names = [p.name for p in known]
        for key in [k for k in arguments if k not in names]:
            yield (
                f"env_config: {name!r} takes no {key!r}.{did_you_mean(str(key), names)} "
                f"It takes: {', '.join(names) or 'nothing'}."
            )
            del arguments[key]
    if hasattr(simulator, "check_config"):
        yield from _attempt("env_config", lambda: simulator.check_config(arguments))


def _evaluation(c: VLMAlgorithmConfig, *, known: set[str]) -> Iterator[str]:
    """What evaluation changes is held to the same rules, on top of what training says."""
    changes = (
        {k: v for k, v in (c.evaluation_config or {}).items() if hasattr(c, k)}
        if isinstance(c.evaluation_config, dict)
        else {}
    )
    if not changes:
        return
    config = c.copy(copy_frozen=False)
    try:
        config.update_from_dict(changes)
    except Exception as error:  # noqa: BLE001  (whatever RLlib refuses)
        yield f"evaluation_config: {error}"
        return
    for message in (*check_values(config), *_names(config), *_environment(config)):
        if message not in known:
            yield f"evaluation_config: {message}"


def _model(c: VLMAlgorithmConfig) -> Iterator[str]:
    unknown = list(
        _attempt("model_config: family", lambda: registry.resolve("models", c.model_config["family"]))
    )
    yield from unknown or _attempt("model_config", lambda: _check_model(c))
    if not unknown:
        yield from _grounding(c)
        if not any(_attempt("backend", lambda: registry.resolve("backends", c.backend))):
            yield from _attempt("backend", lambda: _check_engines(c))
    yield from _attempt(
        "model_config: value_head", lambda: ValueHeadConfig.of(c.model_config.get("value_head"))
    )


def _check_engines(c: VLMAlgorithmConfig) -> None:
    """Engines that know the family, where there are engines at all."""
    engines = engines_of(c.backend)
    if engines is None:
        if c.engine:
            raise RLlibVLMError(
                f"the backend {c.backend!r} has no engines: leave out generation.engine, or take backend 'vllm'"
            )
        return
    name = c.model_config["family"]
    if engines not in registry.resolve("models", name).served_by:
        known = [m for m in registry.names("models") if engines in registry.resolve("models", m).served_by]
        raise RLlibVLMError(
            f"engines of {c.backend!r} do not know the family {name!r}; they know {', '.join(known)}. Backend 'hf' "
            "knows them all"
        )


def _grounding(c: VLMAlgorithmConfig) -> Iterator[str]:
    """Iterations that would teach nothing."""
    if registry.resolve("models", c.model_config["family"]).labels_images:
        return
    for name in ("warm_start_grounding_updates", "warm_start_grounding_every"):
        if getattr(c, name):
            yield (
                f"{name} is {getattr(c, name)}; it teaches what image tokens show, and in the family "
                f"{c.model_config['family']!r} an image has no tokens for its parts: set it to 0"
            )


def _check_model(c: VLMAlgorithmConfig) -> None:
    """Lets the family look at its part of `model_config`; a module of the user's own has keys of its own."""
    from rllib_vlm.core.rl_module import MODULE_KEYS

    family = registry.resolve("models", c.model_config["family"])
    if c._rl_module_spec is not None:
        return
    config = {key: value for key, value in c.model_config.items() if key not in MODULE_KEYS}
    try:
        family.check_config(config)
    except UnknownNameError as error:
        if error.name not in config:
            raise
        raise UnknownNameError(error.what, error.name, {*error.known, *MODULE_KEYS}) from error


def _combinations(c: VLMAlgorithmConfig) -> Iterator[str]:
    if c.loss_reduction == "fixed" and not c.loss_reduction_constant:
        yield "loss_reduction 'fixed' needs loss_reduction_constant, e.g. max_new_tokens"
    if c.max_prompt_tokens and c.max_prompt_tokens + c.max_new_tokens > c.row_tokens:
        yield (
            f"row_tokens is {c.row_tokens}, too short for max_prompt_tokens {c.max_prompt_tokens} and "
            f"max_new_tokens {c.max_new_tokens}: set it to at least {c.max_prompt_tokens + c.max_new_tokens}"
        )
    if not c.in_evaluation and c.temperature == 0 and c.algo_class.__name__ != "VLMSFT":
        yield "temperature is 0: a greedy policy never tries anything else; give evaluation a temperature of 0"
    if c.session_cache_mib and c.backend != "hf":
        yield (
            f"session_cache_mib is {c.session_cache_mib}, but the backend {c.backend!r} has no such cache: "
            "leave it out, or take backend 'hf'"
        )
    if c.backend == "vllm" and c.temperature > 2:
        yield f"temperature is {c.temperature}; engines of 'vllm' sample at 2 at most"
    if c.backend == "vllm" and c.placement == "hybrid":
        yield (
            "placement is 'hybrid', and engines of 'vllm' stay on their GPUs while learners learn: take 'shared' and "
            "leave room with generation.engine.gpu_memory_share, or take 'separate'"
        )
    if c.lr_schedule in ("linear", "cosine") and c.total_updates is None:
        yield f"lr_schedule {c.lr_schedule!r} needs total_updates, where it ends"
    for section, prefix in (("training", ""), ("warm_start", "warm_start_")):
        if not getattr(c, f"{prefix}lr_schedule_by_time"):
            continue
        if getattr(c, f"{prefix}time_budget_s") is None:
            yield f"{section}.lr_schedule_by_time needs {section}.time_budget_s, with which the schedule ends"
        if getattr(c, f"{prefix}lr_schedule") == "constant":
            yield f"{section}.lr_schedule_by_time needs a {section}.lr_schedule that falls: linear or cosine"
    if c.warm_start_lr_schedule_by_time and c.warm_start_grounding_updates:
        yield (
            "warm_start.lr_schedule_by_time: grounding_updates have a schedule of their own, and how both share the "
            "time budget is not known; leave one of them out"
        )
    if c.minibatch_size and c.num_learners > 1 and c.minibatch_size < c.num_learners:
        yield f"minibatch_size {c.minibatch_size} leaves some of {c.num_learners} learners without rows"
    if c.downsample < 1.0 and c.value_loss_coeff:
        yield (
            f"downsample {c.downsample} leaves turns out of the critic's lessons too, those it foretells best; set "
            "value_loss_coeff: 0 with an estimator that needs no critic, or downsample: 1"
        )
    if c.groups_per_update < (c.num_learners or 1):
        yield (
            f"groups_per_update is {c.groups_per_update}, fewer than num_learners {c.num_learners}: "
            "whole groups go to learners, each needs one"
        )
    if c.kl_target is not None and not c.kl_coeff:
        yield "kl_target moves kl_coeff, which is 0: give it something to begin with, e.g. 0.01"
    if c.kl_reference == "adapters_off" and c.kl_coeff and not c.model_config.get("lora"):
        yield "kl_reference 'adapters_off' needs rl_module.model_config.lora: without adapters it is the policy itself"
    if c.sampling_rounds and c.group_size < 2:
        yield "sampling_rounds drops groups whose members all earned the same: it needs a group_size of 2 or more"
    if c.one_step_off_policy and not c.in_evaluation:
        yield from _sampling_ahead(c)
    if c.grad_clip is not None and c.grad_clip_by != "global_norm":
        yield f"grad_clip_by is {c.grad_clip_by!r}; only 'global_norm' is supported"
    yield from engine_errors(c)
    if c.curriculum is not None:
        yield from _curriculum(c.curriculum)
    if c.warm_start_updates and c.warm_start_demonstrations is not None:
        path = c.warm_start_demonstrations
        yield from _attempt("warm_start_demonstrations", lambda: open_demonstrations(path).close())
    if not (c.enable_rl_module_and_learner and c.enable_env_runner_and_connector_v2):
        yield "enable_rl_module_and_learner and enable_env_runner_and_connector_v2 must stay true"
    if c.is_multi_agent:
        yield "multi_agent: only single-agent simulators are supported"


def _sampling_ahead(c: VLMAlgorithmConfig) -> Iterator[str]:
    """Who cannot sample while somebody learns."""
    way_out = "or one_step_off_policy to false"
    if not c.num_env_runners:
        yield (
            "one_step_off_policy has env runners sample while learners learn, but num_env_runners is 0: the driver "
            f"does both, one after the other. Set num_env_runners to 1 or more, {way_out}"
        )
    if c.placement == "hybrid":
        yield (
            "one_step_off_policy has env runners sample while learners learn, but with placement 'hybrid' they take "
            f"turns on a GPU. Set placement to 'separate' or 'shared', {way_out}"
        )


def _curriculum(value: Any) -> Iterator[str]:
    known = ("start", "end", "updates", "step", "threshold")
    if not isinstance(value, dict):
        yield f"curriculum is {value!r}, not a mapping of {', '.join(known)}"
        return
    for name in value:
        if name not in known:
            yield f"curriculum: no option {name!r}.{did_you_mean(str(name), known)} Known: {', '.join(known)}"
    bounds = {
        "start": Range(0, 1), "end": Range(0, 1), "updates": Range(1, whole=True),
        "step": Range(0, 1, open_low=True), "threshold": Range(0, 1),
    }  # fmt: skip
    wrong = {name for name, bound in bounds.items() if name in value and value[name] not in bound}
    for name in sorted(wrong):
        yield f"curriculum: {name} is {value[name]!r}; it must be {bounds[name]}"
    if not wrong and value.get("start", 0.0) > value.get("end", 1.0):
        yield f"curriculum: start is {value['start']!r}, above end, {value.get('end', 1.0)!r}"
    if ("updates" in value) == ("threshold" in value):
        yield "curriculum: needs either updates (a linear rise) or threshold (a rise on success)"


def _attempt(setting: str, build: Callable[[], object]) -> Iterator[str]:
    """What `build` has to say against the setting, one message for each of several mistakes."""
    try:
        build()
    except ConfigErrors as error:
        yield from (f"{setting}: {message}" for message in error.errors)
    except RLlibVLMError as error:
        yield f"{setting}: {error}"
    except (TypeError, ValueError, AttributeError) as error:  # a value no code expected
        yield f"{setting}: {type(error).__name__}: {error}"
