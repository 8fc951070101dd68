"""Recorded demonstrations as episodes: the prompts and answers the policy's own model would see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_vlm.core.columns import GROUP, METRICS, SUCCESS, TASK_SEED, VLMColumns
from rllib_vlm.data import RecordedEpisode
from rllib_vlm.env.play import Lesson
from rllib_vlm.env.rollout import PromptRendering
from rllib_vlm.sims.base import Observation
from rllib_vlm.types import Completion, Demonstration, Image, ParsedAction


def recorded_episode(
    recorded: RecordedEpisode,
    render: PromptRendering,
    answer: Callable[[Demonstration], Completion],
    lesson: Lesson,
) -> SingleAgentEpisode:
    """The episode whose actions are the expert's answers. A turn in which the expert gives up ends it.

    Args:
        recorded: as read from disk.
        render: prompts of episodes (the env-to-module pipeline).
        answer: the expert's turn as tokens.
        lesson: what goes beyond the answer, as for an expert that plays.
    """
    episode = SingleAgentEpisode()
    episode.custom_data.update(
        {
            GROUP: f"recorded/{recorded.index}",
            TASK_SEED: recorded.task_seed,
            SUCCESS: recorded.success,
            METRICS: dict(recorded.metrics),
            "num_actions": sum(len(turn.demonstration.actions) for turn in recorded.turns),
        }
    )
    turns = recorded.turns
    views = [(turn.text, turn.images) for turn in turns] + [(recorded.final_text, recorded.final_images)]
    info: dict[str, Any] = {"instruction": recorded.instruction}
    episode.add_env_reset(observation=_observation(*views[0]), infos=info)
    for i, turn in enumerate(turns):
        said = turn.demonstration
        if not said.actions:
            break
        last = i + 1 == len(turns)
        label = answer(said)
        prompt, asked = lesson(said, render([episode])[0], label, len(turn.images))
        outputs = {
            VLMColumns.PROMPT: prompt,
            VLMColumns.PARSED: ParsedAction(valid=True, actions=said.actions),
            VLMColumns.FOLLOWUPS: asked,
        }
        episode.add_env_step(
            observation=_observation(*views[i + 1]),
            action=label,
            reward=turn.reward,
            infos={},
            terminated=last and recorded.terminated,
            truncated=last and not recorded.terminated,
            extra_model_outputs=outputs,
        )
    return episode


def _observation(text: str, images: tuple[Image, ...]) -> Observation:
    observation: Observation = {"text": text}
    if images:
        observation["images"] = np.stack(images)
    return observation
