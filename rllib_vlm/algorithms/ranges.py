"""Which values each setting may have: kind and bounds, in one table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rllib_vlm.algorithms.vlm_config import VLMAlgorithmConfig


_LARGEST = 1e18  # beyond it nothing is a count, a time or a weight, and 64 bits end


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`; `open_low` leaves `low` itself out, `optional` lets in None."""

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    open_low: bool = False
    optional: bool = False

    def __contains__(self, value: Any) -> bool:
        if value is None:
            return self.optional
        # YAML's true is no number, though Python's is.
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        number: Any = value
        if abs(number) > _LARGEST or (self.open_low and number == self.low):
            return False
        return bool(self.low <= number <= self.high)  # NaN is nowhere

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if math.isfinite(self.high):
            bounds = (
                f" above {self.low:g} and at most {self.high:g}"
                if self.open_low
                else f" between {self.low:g} and {self.high:g}"
            )
        elif math.isfinite(self.low):
            bounds = f" above {self.low:g}" if self.open_low else f" of at least {self.low:g}"
        else:
            bounds = ""
        return f"{kind}{bounds}{', or nothing' if self.optional else ''}"


_COUNT = Range(1, whole=True)
_COUNT_OR_NONE = Range(1, whole=True, optional=True)
_COUNT_OR_ZERO = Range(0, whole=True)
_SHARE = Range(0, 1)
_POSITIVE = Range(0, open_low=True)
_POSITIVE_OR_NONE = Range(0, open_low=True, optional=True)
_NOT_NEGATIVE = Range(0)
_NOT_NEGATIVE_OR_NONE = Range(0, optional=True)

RANGES: dict[str, Range] = {
    # simulation
    "simulator_start_deadline_s": _POSITIVE,
    "simulator_reset_deadline_s": _POSITIVE,
    "simulator_turn_deadline_s": _POSITIVE,
    "simulator_max_retries": _COUNT_OR_ZERO,
    "max_turns": _COUNT,
    "num_task_seeds": _COUNT_OR_NONE,
    # prompting
    "max_actions_per_turn": _COUNT,
    "max_images": Range(0, whole=True, optional=True),
    "max_prompt_tokens": _COUNT_OR_NONE,
    "format_reward": Range(),
    "invalid_penalty": Range(),
    # generation
    "temperature": Range(0, 100),
    "top_p": Range(0, 1, open_low=True),
    "max_new_tokens": _COUNT,
    "session_cache_mib": _NOT_NEGATIVE_OR_NONE,
    # warm start
    "warm_start_updates": _COUNT_OR_ZERO,
    "warm_start_episodes_per_update": _COUNT,
    "warm_start_epochs": _COUNT,
    "warm_start_minibatch_size": _COUNT_OR_NONE,
    "warm_start_lr": _NOT_NEGATIVE_OR_NONE,
    "warm_start_warmup_updates": _COUNT_OR_ZERO,
    "warm_start_lr_final_fraction": _SHARE,
    "warm_start_grounding_coeff": _NOT_NEGATIVE,
    "warm_start_policy_share": _SHARE,
    "warm_start_buffer_episodes": _COUNT_OR_ZERO,
    "warm_start_replay_ratio": _NOT_NEGATIVE,
    "warm_start_grounding_updates": _COUNT_OR_ZERO,
    "warm_start_policy_share_updates": _COUNT_OR_ZERO,
    "warm_start_grounding_every": _COUNT_OR_ZERO,
    "warm_start_grounding_crops": _COUNT_OR_ZERO,
    "warm_start_grounding_minibatch_size": _COUNT_OR_NONE,
    "warm_start_time_budget_s": _POSITIVE_OR_NONE,
    # training
    "groups_per_update": _COUNT,
    "group_size": _COUNT,
    "num_epochs": _COUNT,
    "minibatch_size": _COUNT_OR_NONE,
    "downsample": Range(0, 1, open_low=True),
    "clip_low": _SHARE,
    "clip_high": _NOT_NEGATIVE_OR_NONE,
    "dual_clip": Range(1, open_low=True, optional=True),
    "policy_loss_coeff": _NOT_NEGATIVE,
    "value_loss_coeff": _NOT_NEGATIVE,
    "value_clip": _POSITIVE_OR_NONE,
    "value_huber": _POSITIVE_OR_NONE,
    "kl_target": _POSITIVE_OR_NONE,
    "entropy_coeff": Range(),
    "entropy_floor": _POSITIVE_OR_NONE,
    "kl_coeff": _NOT_NEGATIVE,
    "loss_reduction_constant": _POSITIVE_OR_NONE,
    "critic_warmup_updates": _COUNT_OR_ZERO,
    "sampling_rounds": _COUNT_OR_ZERO,
    "value_lr": _NOT_NEGATIVE_OR_NONE,
    "lr_warmup_updates": _COUNT_OR_ZERO,
    "lr_final_fraction": _SHARE,
    "total_updates": Range(0, whole=True, optional=True),
    "time_budget_s": _POSITIVE_OR_NONE,
    "weight_decay": _NOT_NEGATIVE,
    "adam_epsilon": _POSITIVE,
    "grad_clip": _POSITIVE_OR_NONE,
    "row_tokens": Range(2, whole=True),
    "micro_batch_tokens": _COUNT,
    "logprob_chunk": _COUNT,
    # runners and learners
    "num_env_runners": _COUNT_OR_ZERO,
    "num_envs_per_env_runner": _COUNT,
    "num_cpus_per_env_runner": _NOT_NEGATIVE,
    "num_gpus_per_env_runner": _NOT_NEGATIVE,
    "num_learners": _COUNT_OR_ZERO,
    "num_gpus_per_learner": _NOT_NEGATIVE,
    "zero_stage": Range(0, 3, whole=True),
    "learner_torch_threads": _COUNT_OR_NONE,
    "env_runner_torch_threads": _COUNT_OR_NONE,
    "batch_wait_ms": _NOT_NEGATIVE,
    "partial_rollouts": _COUNT_OR_ZERO,
    "nodes_wait_s": _NOT_NEGATIVE,
    "evaluation_interval": _COUNT_OR_NONE,
    "evaluation_num_env_runners": _COUNT_OR_ZERO,
    "seed": Range(0, whole=True, optional=True),
}
_FLAGS = (
    "warm_start_only_successes", "normalize_advantages", "mask_truncated", "drop_uninformative", "packing",
    "log_entropy", "bootstrap_truncated", "one_step_off_policy", "lr_schedule_by_time",
    "warm_start_lr_schedule_by_time",
)  # fmt: skip
_MAPPINGS = (
    "env_config",
    "reset_options",
    "parser_options",
    "backend_options",
    "engine",
    "credit_options",
    "span_weights",
    "mismatch",
    "step_guard",
    "engine_options",
)
_TEXTS = ("image_placeholder", "warm_start_demonstrations")


def check_values(c: VLMAlgorithmConfig) -> Iterator[str]:
    """One message for every setting whose value is of the wrong kind or out of bounds."""
    for name, bounds in RANGES.items():
        value = getattr(c, name)
        if value not in bounds:
            yield f"{name} is {value!r}; it must be {bounds}"
    if not isinstance(c.lr, Real) or c.lr not in _NOT_NEGATIVE:
        yield f"lr is {c.lr!r}; give a number of at least 0 and use lr_schedule for schedules"
    kinds: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
        (_FLAGS, lambda v: isinstance(v, bool), "true or false"),
        (_MAPPINGS, lambda v: isinstance(v, dict), "a mapping of options"),
        (_TEXTS, lambda v: v is None or isinstance(v, str), "a text, or nothing"),
        (("stop",), _is_texts, "a list of texts"),
        (("adam_betas",), _is_betas, "two numbers from 0 to below 1"),
        (("evaluation_duration",), lambda v: v == "auto" or v in _COUNT, f"{_COUNT}"),
    )
    for names, fits, meant in kinds:
        for name in names:
            value = getattr(c, name)
            if not fits(value):
                yield f"{name} is {value!r}; it must be {meant}"


def _is_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(v, str) and v for v in value)


def _is_betas(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(v in _SHARE and v < 1 for v in value)
