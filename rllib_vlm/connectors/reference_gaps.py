"""How far tokens are from the reference, asked of the learners before the driver gives credit.

A KL in the reward is charged before credit is given: in `ScoreRows` for estimators of the learner's stage. Those of the
driver compare episodes that different learners read, so the driver asks for the gaps and charges them itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_vlm.batching.rows import Row, rows_from_trajectory, split_by_turn
from rllib_vlm.connectors.trajectories import index_of, to_trajectory
from rllib_vlm.core.reading import Column, read_rows
from rllib_vlm.core.update_plan import UpdatePlan

_REFERENCE = "reference"
Shard = list[SingleAgentEpisode]


def k1(row: Row, reference: Column) -> Column:
    """[L] nats: log-prob when it was sampled less the reference's, 0 off the sampled tokens.

    Source: J. Schulman, "Approximating KL Divergence" (2020).
    """
    return np.where(row.sampled, row.old_logprobs - reference, 0.0).astype(np.float32)


def reference_gaps(
    learner: Any, *, plan: UpdatePlan, shards: Sequence[Shard | ray.ObjectRef]
) -> dict[int, tuple[Column, ...]]:
    """k1 of every sampled token, per turn [T], of this learner's episodes by their index in the update.

    Args:
        learner: a `VLMTorchLearner`, which has its reference from now on.
        plan: of the update that will learn from them.
        shards: the episodes of each learner.
    """
    shard = shards[learner._learner_index]  # noqa: SLF001  (RLlib's only name for it)
    episodes: Shard = ray.get(shard) if isinstance(shard, ray.ObjectRef) else shard
    learner.begin(plan)
    config = learner.config
    trajectories = [to_trajectory(episode) for episode in episodes]
    rows = [rows_from_trajectory(t, max_row_tokens=config.row_tokens) for t in trajectories]
    packs = learner.module[DEFAULT_MODULE_ID].unwrapped().family.packs
    columns = read_rows(
        [row for own in rows for row in own],
        lambda tensors: {_REFERENCE: learner.reference_logprobs(tensors)},
        [_REFERENCE],
        device=learner.device,
        row_tokens=config.row_tokens if packs else None,
        micro_batch_tokens=config.micro_batch_tokens,
        lockstep=learner.lockstep,
    )[_REFERENCE]
    following = iter(columns)
    return {
        index_of(episode): split_by_turn(
            own, [k1(row, next(following)) for row in own], len(trajectory.turns)
        )
        for episode, trajectory, own in zip(episodes, trajectories, rows, strict=True)
    }
