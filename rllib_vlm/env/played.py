"""What an env runner sends back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer

from rllib_vlm.errors import RLlibVLMError


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What a runner made of the tasks it was given."""

    worker: int
    items: list[Any]
    metrics: Any
    numbers: tuple[int, ...] = ()  # of the groups the items belong to, where a runner chooses which it gives
    error: RLlibVLMError | None = None  # a mistake of the user's: no other runner would fare better


def without_views(episodes: list[SingleAgentEpisode]) -> list[SingleAgentEpisode]:
    """The episodes without the images of their observations: a learner reads those of the prompts."""
    for episode in episodes:
        texts = [{"text": observation["text"]} for observation in episode.get_observations()]
        episode.observations = InfiniteLookbackBuffer(texts)
    return episodes
