"""Learner engines: what holds weights, gradients and optimizer state, and steps; one module per engine."""

from __future__ import annotations

from typing import Any

from torch import nn

from rllib_vlm.core.engines.base import Engine, EngineSettings


def make_engine(module: nn.Module, settings: EngineSettings, **place: Any) -> Engine:
    """The engine that `settings.kind` names, which trains `module` from now on.

    Args:
        module: a `VLMRLModule`, on its device.
        settings: of the engine and its optimizer.
        **place: `device` of the learner, its `rank` and the `world` of all that learn together.

    Raises:
        MissingExtraError: the engine's package is not installed.
    """
    if settings.kind == "deepspeed":
        from rllib_vlm.core.engines.deepspeed import (
            DeepSpeedEngine,
        )  # imports DeepSpeed, which not everyone has

        return DeepSpeedEngine(module, settings, **place)
    from rllib_vlm.core.engines.plain import PlainEngine

    return PlainEngine(module, settings, **place)
