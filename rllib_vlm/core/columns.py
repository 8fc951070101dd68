"""Names of the columns that flow between connectors, learner and episodes, beside RLlib's own."""

from __future__ import annotations

from ray.rllib.core.columns import Columns


class VLMColumns(Columns):
    """RLlib's columns and ours. The per-token columns of a packed batch are those of `batching.packing`."""

    # What stands in `extra_model_outputs` of an episode, one entry per turn.
    PROMPT = "prompt"  # types.Prompt: what the model read
    PARSED = "parsed"  # types.ParsedAction: what its answer meant
    EXECUTED = "executed"  # types.Completion: what was acted on, where it is not the labelled answer
    ANCHOR = "anchor"  # str: of the state a turn began in
    FOLLOWUPS = "followups"  # list[Turn]: questions asked after a demonstrated turn, and their answers
    TOKEN_REWARDS = "token_rewards"  # [T]: of single tokens, charged on the driver
    CREDIT = "credit"  # types.TokenCredit, given on the driver

    # Environment side: columns of the env-to-module and module-to-env pipelines, one item per episode.
    PROMPTS = "prompts"  # list[Prompt]

    # Learner pipeline, before packing.
    TRAJECTORIES = "trajectories"  # list[Trajectory]
    ROWS = "rows"  # list[list[Row]], per trajectory
    TRAJECTORY_CREDIT = "trajectory_credit"  # list[list[TokenCredit] | None], per trajectory
    FINAL_PROMPTS = "final_prompts"  # list[Prompt | None]: what stood after the last turn of a cut episode
    EPISODE_INDEX = "episode_index"  # list[int]: position of the episode in the whole update

    # Forward output of the module.
    LOGPROBS = "logprobs"  # [B, L] nats
    ENTROPY = "entropy"  # [B, L] nats
    VALUES = "values"  # [B, L]
    GROUNDING = "grounding"  # [B, L] nats: log-probability of what image tokens show, and where
    REFERRING = "referring"  # [B, L] nats: log-probability of whether the instruction names that


# Keys of `SingleAgentEpisode.custom_data`.
GROUP = "group"
TASK_SEED = "task_seed"
SUCCESS = "success"
METRICS = "metrics"
INDEX = "index"
FINAL_PROMPT = "final_prompt"
