"""What an evaluation keeps of an episode, and what it says of many."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist, fmean
from typing import Any

from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_vlm.core.columns import METRICS, SUCCESS, TASK_SEED


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeSummary:
    """One episode, without its pixels and tokens."""

    task_seed: int
    success: bool
    total_reward: float
    turns: int
    actions: int
    metrics: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, episode: SingleAgentEpisode) -> EpisodeSummary:
        data = episode.custom_data
        return cls(
            task_seed=int(data[TASK_SEED]),
            success=bool(data[SUCCESS]),
            total_reward=float(episode.get_return()),
            turns=len(episode),
            actions=int(data["num_actions"]),
            metrics=dict(data[METRICS]),
        )


def wilson_interval(successes: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Bounds of a success rate; sensible at 0 and 1, where the plain ones collapse.

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927).
    """
    if not n:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / n
    centre = rate + z * z / (2 * n)
    spread = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def summarize(episodes: Sequence[EpisodeSummary]) -> dict[str, Any]:
    """An evaluation's record.

    `success_rate`, `interval_low`, `interval_high` (95%), `num_episodes`, `episode_return_mean`,
    `episode_len_mean` (turns), `episode_actions_mean`, and under `sim` the simulator's own metrics,
    means over the episodes that report them.
    """
    n = len(episodes)
    successes = sum(e.success for e in episodes)
    low, high = wilson_interval(successes, n)
    own: dict[str, list[float]] = defaultdict(list)
    for episode in episodes:
        for name, value in episode.metrics.items():
            own[name].append(value)
    return {
        "success_rate": successes / n if n else 0.0,
        "num_successes": successes,
        "interval_low": low,
        "interval_high": high,
        "num_episodes": n,
        "episode_return_mean": fmean(e.total_reward for e in episodes) if n else 0.0,
        "episode_len_mean": fmean(e.turns for e in episodes) if n else 0.0,
        "episode_actions_mean": fmean(e.actions for e in episodes) if n else 0.0,
        "sim": {name: fmean(values) for name, values in own.items()},
    }
