"""Credit that the driver gives, because it compares episodes: of whole groups, or of the whole update."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_vlm.connectors.reference_gaps import reference_gaps
from rllib_vlm.connectors.trajectories import (
    attach_credit,
    attach_token_rewards,
    by_group,
    index_of,
    to_trajectory,
)
from rllib_vlm.core.update_plan import UpdatePlan
from rllib_vlm.credit.base import CreditAssigner


def charge_kl(
    episodes: Sequence[SingleAgentEpisode], shards: Sequence[Any], group: LearnerGroup, plan: UpdatePlan
) -> float:
    """Rewards each token with -`plan.kl_reward` x k1; gives the mean of k1, nats a token.

    Args:
        episodes: of the update, numbered.
        shards: the same, of each learner: lists or references to lists.
        group: who has the reference.
        plan: of the update.
    """
    found = list(group.foreach_learner(func=partial(reference_gaps, plan=plan, shards=shards)))
    if lost := [result.get() for result in found if not result.ok]:
        raise lost[0]
    gaps = {index: per_turn for result in found for index, per_turn in result.get().items()}
    for episode in episodes:
        attach_token_rewards(episode, [-plan.kl_reward * gap for gap in gaps[index_of(episode)]])
    return float(np.concatenate([gap for per_turn in gaps.values() for gap in per_turn]).mean())


def give_credit(assign: CreditAssigner, episodes: Sequence[SingleAgentEpisode]) -> dict[str, float]:
    """Attaches to each episode what `assign` says of it; gives the estimator's own figures."""
    groups = by_group(episodes).values() if assign.stage == "group" else [list(episodes)]
    for members in groups:
        credit = assign([to_trajectory(e) for e in members])
        for episode, own in zip(members, credit, strict=True):
            attach_credit(episode, own)
    figures = getattr(assign, "figures", None)
    return {} if figures is None else dict(figures.pop())
