"""What can be said against a choice of learner engine."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rllib_vlm.errors import MissingExtraError

if TYPE_CHECKING:
    from rllib_vlm.algorithms.vlm_config import VLMAlgorithmConfig

# Of DeepSpeed's configuration: what follows from other settings, and by which of them it is set.
_OURS = {
    "train_batch_size": "training.minibatch_size",
    "train_micro_batch_size_per_gpu": "training.micro_batch_tokens",
    "gradient_accumulation_steps": "training.micro_batch_tokens",
    "gradient_clipping": "training.grad_clip",
    "optimizer": "training.lr, weight_decay, adam_betas and adam_epsilon",
    "scheduler": "training.lr_schedule",
    "bf16": "rl_module.model_config.dtype",
    "fp16": "rl_module.model_config.dtype",
    "torch_autocast": "training.precision",
    "zero_optimization.stage": "learners.zero_stage",
    "zero_optimization.offload_optimizer": "learners.offload_optimizer",
    "zero_allow_untested_optimizer": "nothing: it must be true",
    "zero_force_ds_cpu_optimizer": "nothing: it must be false",
}
_TYPES = ("float32", "bfloat16")


def engine_errors(c: VLMAlgorithmConfig) -> Iterator[str]:
    """What is wrong with `learners: {engine, ...}` in this configuration, one message each."""
    if c.learner_engine != "deepspeed":
        if c.offload_optimizer not in (None, "none"):
            yield (
                f"offload_optimizer is {c.offload_optimizer!r}; only DeepSpeed offloads: "
                "set learners.engine to deepspeed, or offload_optimizer to none"
            )
        if c.engine_options:
            yield (
                f"engine_options are {sorted(c.engine_options)}; the plain engine has none: "
                "set learners.engine to deepspeed, or leave them out"
            )
        return
    if find_spec("deepspeed") is None:
        yield f"learner_engine: {MissingExtraError('deepspeed', 'deepspeed')}"
    if c.optimizer_type != "adamw":
        yield (
            f"optimizer_type is {c.optimizer_type!r}, which works on whole matrices; DeepSpeed holds parts of them: "
            "take adamw, or learners.engine plain"
        )
    if c.offload_optimizer == "cpu" and c.zero_stage == 0:
        yield "offload_optimizer 'cpu' needs a zero_stage of 1, 2 or 3: without ZeRO there is nothing to offload"
    if c.placement == "hybrid":
        yield (
            "placement is 'hybrid', and DeepSpeed's parts of weights cannot leave the GPU between phases: take "
            "'shared', with learners.offload_optimizer cpu for what it saves, or learners.engine plain"
        )
    dtype = c.model_config.get("dtype", "float32")
    if dtype not in _TYPES:
        yield (
            f"model_config: dtype is {dtype!r}; with learners.engine deepspeed it must be one of {', '.join(_TYPES)}"
        )
    for name, own in _OURS.items():
        section, _, key = name.partition(".")
        options = c.engine_options.get(section)
        if section in c.engine_options and (not key or (isinstance(options, dict) and key in options)):
            yield f"engine_options has {name!r}, which is set by {own}"
