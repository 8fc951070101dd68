"""Learner: episodes become trajectories and rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from rllib_vlm.batching.rows import rows_from_trajectory, with_credit, with_weights
from rllib_vlm.batching.spans import token_weights
from rllib_vlm.connectors.trajectories import credit_of, final_prompt, index_of, to_trajectory
from rllib_vlm.core.columns import VLMColumns
from rllib_vlm.types import Turn


class EpisodesToRows(ConnectorV2):
    """Adds, each with one entry per episode: the trajectory, its rows and credit, its index in the update.

    Args:
        row_tokens: longest row; an episode whose prompts grow is cut into several rows there.
        mask_truncated: answers cut at the token limit do not count in the policy's loss.
        span_weights: of parts of answers in the policy's loss, see `batching.spans`; not for imitation.
    """

    def __init__(
        self,
        input_observation_space: Any = None,
        input_action_space: Any = None,
        *,
        row_tokens: int,
        mask_truncated: bool = False,
        span_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(input_observation_space, input_action_space)
        self._row_tokens = row_tokens
        self._mask_truncated = mask_truncated
        self._span_weights = dict(span_weights or {})

    @override(ConnectorV2)
    def __call__(
        self,
        *,
        rl_module: Any,
        batch: dict[str, Any],
        episodes: list[SingleAgentEpisode],
        shared_data: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        trajectories = [to_trajectory(episode) for episode in episodes]
        credit = [credit_of(episode) for episode in episodes]
        rows = [
            rows_from_trajectory(
                trajectory, max_row_tokens=self._row_tokens, mask_truncated=self._mask_truncated
            )
            for trajectory in trajectories
        ]
        plan = (shared_data or {}).get("plan")
        if self._span_weights and (plan is None or plan.expects_credit):
            family = rl_module[DEFAULT_MODULE_ID].unwrapped().family
            rows = [
                with_weights(own, [self._weights(turn, family) for turn in trajectory.turns])
                for own, trajectory in zip(rows, trajectories, strict=True)
            ]
        batch[VLMColumns.TRAJECTORIES] = trajectories
        batch[VLMColumns.TRAJECTORY_CREDIT] = credit
        batch[VLMColumns.ROWS] = [
            own if given is None else with_credit(own, given) for own, given in zip(rows, credit, strict=True)
        ]
        batch[VLMColumns.FINAL_PROMPTS] = [final_prompt(episode) for episode in episodes]
        batch[VLMColumns.EPISODE_INDEX] = [index_of(episode) for episode in episodes]
        return batch

    def _weights(self, turn: Turn, family: Any) -> NDArray[np.float32]:
        """[T] of the tokens of a turn's answer."""
        return token_weights(
            turn.parsed.spans, family.char_ends(turn.completion.token_ids), self._span_weights
        )
