"""Everything that can be said against a configuration before anything is built."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, get_args

from rllib_vlm import registry
from rllib_vlm.core.update_plan import Schedule
from rllib_vlm.core.value_head import ValueHeadConfig
from rllib_vlm.errors import RLlibVLMError, did_you_mean
from rllib_vlm.losses.kl import KLEstimator
from rllib_vlm.losses.reduce import Reduction
from rllib_vlm.prompts import build_history, build_parser

if TYPE_CHECKING:
    from rllib_vlm.algorithms.vlm_config import VLMAlgorithmConfig

_AT = ("start", "warm_start_end", "final")


def check(config: VLMAlgorithmConfig) -> list[str]:
    """What is wrong with `config`, one message each; empty if nothing is."""
    return [*_names(config), *_numbers(config), *_combinations(config)]


def _names(c: VLMAlgorithmConfig) -> Iterator[str]:
    if isinstance(c.env, str) and ":" not in c.env:
        yield from _attempt(lambda: registry.resolve("simulators", c.env))
    yield from _attempt(lambda: build_parser(c.parser, **c.parser_options))
    yield from _attempt(lambda: build_history(c.history))
    yield from _attempt(lambda: registry.resolve("credit", c.credit)(**c.credit_options))
    yield from _attempt(lambda: registry.resolve("backends", c.backend))
    yield from _attempt(lambda: registry.resolve("models", c.model_config["family"]))
    yield from _attempt(lambda: ValueHeadConfig.of(c.model_config.get("value_head")))
    choices: dict[str, tuple[str, ...]] = {
        "observation": ("vision", "text"),
        "simulator_process": ("inline", "subprocess"),
        "warm_start_mixing": ("turn", "episode"),
        "warm_start_precision": ("float32", "bfloat16"),
        "lr_schedule": get_args(Schedule),
        "warm_start_lr_schedule": get_args(Schedule),
        "kl_estimator": get_args(KLEstimator),
        "loss_reduction": get_args(Reduction),
    }
    for name, known in choices.items():
        value = getattr(c, name)
        if value not in known:
            yield f"{name} is {value!r}.{did_you_mean(str(value), known)} Known: {', '.join(known)}"
    for at in c.evaluation_at or ():
        if at not in _AT:
            yield f"evaluation_at has {at!r}.{did_you_mean(str(at), _AT)} Known: {', '.join(_AT)}"
    known_names = vars(c)
    for name in c.evaluation_config if isinstance(c.evaluation_config, dict) else ():
        if name not in known_names and not hasattr(type(c), name):
            yield f"evaluation_config has no {name!r}.{did_you_mean(name, known_names)}"


def _numbers(c: VLMAlgorithmConfig) -> Iterator[str]:
    at_least: dict[str, tuple[float, ...]] = {
        "max_actions_per_turn": (1,),
        "max_new_tokens": (1,),
        "max_turns": (1,),
        "groups_per_update": (1,),
        "group_size": (1,),
        "num_epochs": (1,),
        "row_tokens": (2,),
        "micro_batch_tokens": (1,),
        "warm_start_episodes_per_update": (1,),
        "warm_start_epochs": (1,),
        "warm_start_updates": (0,),
        "warm_start_buffer_episodes": (0,),
        "critic_warmup_updates": (0,),
        "simulator_max_retries": (0,),
        "temperature": (0,),
        "warm_start_policy_share": (0, 1),
        "lr_final_fraction": (0, 1),
        "clip_low": (0, 1),
    }
    for name, (low, *high) in at_least.items():
        value = getattr(c, name)
        if not isinstance(value, int | float) or value < low or (high and value > high[0]):
            bounds = f"between {low:g} and {high[0]:g}" if high else f"at least {low:g}"
            yield f"{name} is {value!r}; it must be {bounds}"
    positive = (
        "simulator_start_deadline_s",
        "simulator_reset_deadline_s",
        "simulator_turn_deadline_s",
        "minibatch_size",
        "warm_start_minibatch_size",
        "time_budget_s",
        "warm_start_time_budget_s",
        "num_task_seeds",
        "grad_clip",
    )
    for name in positive:
        value = getattr(c, name)
        if value is not None and not (isinstance(value, int | float) and value > 0):
            yield f"{name} is {value!r}; it must be above 0"
    if c.total_updates is not None and not (isinstance(c.total_updates, int) and c.total_updates >= 0):
        yield f"total_updates is {c.total_updates!r}; it must be a whole number of at least 0"
    if not isinstance(c.top_p, int | float) or not 0 < c.top_p <= 1:
        yield f"top_p is {c.top_p!r}; it must be above 0 and at most 1"
    if not isinstance(c.lr, int | float) or c.lr < 0:
        yield f"lr is {c.lr!r}; give a number of at least 0 and use lr_schedule for schedules"


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
    if c.lr_schedule in ("linear", "cosine") and c.total_updates is None:
        yield f"lr_schedule {c.lr_schedule!r} needs total_updates, where it ends"
    if c.minibatch_size and c.num_learners > 1 and c.minibatch_size < c.num_learners:
        yield f"minibatch_size {c.minibatch_size} leaves some of {c.num_learners} learners without rows"
    if c.groups_per_update < (c.num_learners or 1):
        yield (
            f"groups_per_update is {c.groups_per_update}, fewer than num_learners {c.num_learners}: "
            "whole groups go to learners, each needs one"
        )
    if c.grad_clip is not None and c.grad_clip_by != "global_norm":
        yield f"grad_clip_by is {c.grad_clip_by!r}; only 'global_norm' is supported"
    if c.curriculum is not None:
        yield from _curriculum(c.curriculum)
    if c.is_multi_agent:
        yield "multi_agent: only single-agent simulators are supported"


def _curriculum(value: Any) -> Iterator[str]:
    known = ("start", "end", "updates", "step", "threshold")
    if not isinstance(value, dict):
        yield f"curriculum is {value!r}, not a mapping of {', '.join(known)}"
        return
    for name in value:
        if name not in known:
            yield f"curriculum has no {name!r}.{did_you_mean(str(name), known)} Known: {', '.join(known)}"
    if ("updates" in value) == ("threshold" in value):
        yield "curriculum needs either updates (a linear rise) or threshold (a rise on success)"


def _attempt(build: Callable[[], object]) -> Iterator[str]:
    try:
        build()
    except RLlibVLMError as error:
        yield str(error)
    except TypeError as error:  # an option the constructor does not have
        yield str(error)
