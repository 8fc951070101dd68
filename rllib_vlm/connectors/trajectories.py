"""Between RLlib's episodes and our trajectories."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer

from rllib_vlm.core.columns import FINAL_PROMPT, GROUP, INDEX, SUCCESS, VLMColumns
from rllib_vlm.types import Completion, Prompt, TokenCredit, Trajectory, Turn


def to_trajectory(episode: SingleAgentEpisode) -> Trajectory:
    """The episode as credit assignment and batching see it; arrays are shared, not copied.

    In a demonstration, the questions asked about a turn stand as turns of their own behind it.
    """
    prompts = episode.get_extra_model_outputs(VLMColumns.PROMPT)
    parsed = episode.get_extra_model_outputs(VLMColumns.PARSED)
    completions = episode.get_actions()
    rewards = episode.get_rewards()
    infos = episode.get_infos()
    asked = [()] * len(episode)
    if VLMColumns.FOLLOWUPS in episode.extra_model_outputs:
        asked = episode.get_extra_model_outputs(VLMColumns.FOLLOWUPS)
    anchors = [""] * len(episode)
    if VLMColumns.ANCHOR in episode.extra_model_outputs:
        anchors = episode.get_extra_model_outputs(VLMColumns.ANCHOR)
    turns: list[Turn] = []
    for i in range(len(episode)):
        turns.append(
            Turn(
                prompt=prompts[i],
                completion=completions[i],
                parsed=parsed[i],
                reward=float(rewards[i]),
                anchor=anchors[i],
                state=infos[i].get("state", {}),
                info=infos[i + 1],
            )
        )
        turns += asked[i]
    return Trajectory(
        turns=tuple(turns),
        group=str(episode.custom_data.get(GROUP, episode.id_)),
        terminated=bool(episode.is_terminated),
        truncated=bool(episode.is_truncated),
        success=bool(episode.custom_data.get(SUCCESS, False)),
        token_rewards=tuple(episode.get_extra_model_outputs(VLMColumns.TOKEN_REWARDS))
        if VLMColumns.TOKEN_REWARDS in episode.extra_model_outputs
        else (),
    )


def to_episode(trajectory: Trajectory) -> SingleAgentEpisode:
    """An episode of which `to_trajectory` makes what a learner reads of `trajectory`; its observations are empty."""
    episode = SingleAgentEpisode()
    episode.custom_data.update({GROUP: trajectory.group, SUCCESS: trajectory.success})
    episode.add_env_reset(observation={"text": ""}, infos={})
    for i, turn in enumerate(trajectory.turns, 1):
        last = i == len(trajectory.turns)
        episode.add_env_step(
            observation={"text": ""},
            action=turn.completion,
            reward=turn.reward,
            infos={},
            terminated=last and trajectory.terminated,
            truncated=last and trajectory.truncated,
            extra_model_outputs={VLMColumns.PROMPT: turn.prompt, VLMColumns.PARSED: turn.parsed},
        )
    return episode


def by_group(episodes: Iterable[SingleAgentEpisode]) -> dict[str, list[SingleAgentEpisode]]:
    """Siblings together, groups in the order of their first members."""
    groups: dict[str, list[SingleAgentEpisode]] = {}
    for episode in episodes:
        groups.setdefault(episode.custom_data[GROUP], []).append(episode)
    return groups


def attach_credit(episode: SingleAgentEpisode, credit: Sequence[TokenCredit]) -> None:
    """Stores one `TokenCredit` per turn in the episode, where it survives the way to a learner."""
    episode.extra_model_outputs[VLMColumns.CREDIT] = InfiniteLookbackBuffer(list(credit))


def attach_token_rewards(episode: SingleAgentEpisode, rewards: Sequence[NDArray[np.float32]]) -> None:
    """Stores rewards [T] of each turn's tokens, which count beside the turn's own."""
    episode.extra_model_outputs[VLMColumns.TOKEN_REWARDS] = InfiniteLookbackBuffer(list(rewards))


def credit_of(episode: SingleAgentEpisode) -> list[TokenCredit] | None:
    """What `attach_credit` stored, or None."""
    if VLMColumns.CREDIT not in episode.extra_model_outputs:
        return None
    return list(episode.get_extra_model_outputs(VLMColumns.CREDIT))


def executed(episode: SingleAgentEpisode) -> list[Completion]:
    """The answers that were acted on, turn by turn: the model's own, or in a demonstration maybe its stand-ins."""
    if VLMColumns.EXECUTED in episode.extra_model_outputs:
        return list(episode.get_extra_model_outputs(VLMColumns.EXECUTED))
    return list(episode.get_actions())


def final_prompt(episode: SingleAgentEpisode) -> Prompt | None:
    """What the model would have read after the last turn of a cut episode."""
    prompt = episode.custom_data.get(FINAL_PROMPT)
    return prompt if isinstance(prompt, Prompt) else None


def index_of(episode: SingleAgentEpisode) -> int:
    """The episode's position in the whole update, over all learners."""
    return int(episode.custom_data.get(INDEX, 0))
