"""RLlib episodes of made-up trajectories."""

from __future__ import annotations

from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_vlm.core.columns import FINAL_PROMPT, GROUP, INDEX, METRICS, SUCCESS, TASK_SEED, VLMColumns
from rllib_vlm.types import Prompt, Trajectory


def episode_of(trajectory: Trajectory, *, index: int = 0, final_prompt: Prompt | None = None):
    episode = SingleAgentEpisode()
    episode.custom_data.update(
        {GROUP: trajectory.group, TASK_SEED: 0, SUCCESS: trajectory.success, METRICS: {}, INDEX: index}
    )
    episode.custom_data["num_actions"] = len(trajectory.turns)
    if final_prompt is not None:
        episode.custom_data[FINAL_PROMPT] = final_prompt
    episode.add_env_reset(observation={"text": "0"}, infos={"instruction": "go"})
    for i, turn in enumerate(trajectory.turns):
        last = i + 1 == len(trajectory.turns)
        episode.add_env_step(
            observation={"text": str(i + 1)},
            action=turn.completion,
            reward=turn.reward,
            infos={"after": True},
            terminated=last and trajectory.terminated,
            truncated=last and trajectory.truncated,
            extra_model_outputs={VLMColumns.PROMPT: turn.prompt, VLMColumns.PARSED: turn.parsed},
        )
    return episode
