"""The three pipelines: the data flow of the package in one screen.

env to module   episodes -> RenderPrompts -> prompts
module to env   completions -> ParseActions -> named actions
learner         episodes -> EpisodesToRows -> ScoreRows -> MaskAndPack -> minibatches [B, L]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.rllib.connectors.connector_v2 import ConnectorV2

from rllib_vlm.connectors.episodes_to_rows import EpisodesToRows
from rllib_vlm.connectors.mask_and_pack import MaskAndPack
from rllib_vlm.connectors.parse_actions import ParseActions
from rllib_vlm.connectors.render_prompts import RenderPrompts
from rllib_vlm.connectors.score_rows import ScoreRows
from rllib_vlm.env.simulator_process import SimulatorSpec


def env_to_module(spec: SimulatorSpec | None, prompting: Mapping[str, Any]) -> list[ConnectorV2]:
    """For env runners; without a simulator (on the driver) the pieces exist but do not work."""
    return [RenderPrompts(spec=spec, prompting=prompting)]


def module_to_env(spec: SimulatorSpec | None, prompting: Mapping[str, Any]) -> list[ConnectorV2]:
    """For env runners."""
    return [ParseActions(spec=spec, prompting=prompting)]


def learner(
    *,
    credit: str,
    credit_options: Mapping[str, Any],
    row_tokens: int,
    micro_batch_tokens: int,
    mask_truncated: bool,
    span_weights: Mapping[str, float],
    old_logprobs: str,
    mismatch: Mapping[str, Any],
    packing: bool,
) -> list[ConnectorV2]:
    """For learners."""
    return [
        EpisodesToRows(row_tokens=row_tokens, mask_truncated=mask_truncated, span_weights=span_weights),
        ScoreRows(
            credit=credit,
            credit_options=credit_options,
            old_logprobs=old_logprobs,
            mismatch=mismatch,
            row_tokens=row_tokens,
            micro_batch_tokens=micro_batch_tokens,
        ),
        MaskAndPack(row_tokens=row_tokens, packing=packing),
    ]
