"""What a runner reports, under stable names (`env_runners/...` in a result).

Shares and means are over the episodes (or turns) of one call, merged over runners by RLlib.

| name                        | what                                                             |
|-----------------------------|------------------------------------------------------------------|
| `success_rate`              | share of episodes that succeeded                                 |
| `episode_return_mean`       | sum of an episode's turn rewards                                 |
| `episode_len_mean`          | turns                                                            |
| `episode_actions_mean`      | named actions                                                    |
| `parse_failure_rate`        | share of turns whose answer did not parse                        |
| `response_length`           | tokens of an answer, mean                                        |
| `truncated_response_rate`   | share of answers cut at the token limit                          |
| `dropped_turns`             | past turns a prompt leaves out, mean                             |
| `prompt_length`             | tokens of a prompt, mean                                         |
| `tokens_per_s`, `turns_per_s` | generated tokens and turns per second of wall clock            |
| `time_render_s`, `time_generate_s`, `time_simulate_s`, `time_sample_s` | seconds by phase        |
| `num_simulator_crashes`, `num_simulator_timeouts`, `num_replaced_groups` | counts                |
| `num_episodes_under_way`    | begun and not over, where an update does not wait for all        |
| `num_prefill_tokens`, `num_prefill_tokens_reused` | prompt tokens the backend computed, and had already    |
| `num_retried_turns`         | turns asked again because their engine died (backend `vllm`)     |
| `num_lost_turns`            | turns that cost their episode because engines died with them again and again |
| `sim/<name>`                | the simulator's own metrics, means                               |
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import (
    EPISODE_LEN_MAX,
    EPISODE_LEN_MEAN,
    EPISODE_LEN_MIN,
    EPISODE_RETURN_MAX,
    EPISODE_RETURN_MEAN,
    EPISODE_RETURN_MIN,
    WEIGHTS_SEQ_NO,
)
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_vlm.connectors.trajectories import executed
from rllib_vlm.core.columns import METRICS, SUCCESS, VLMColumns
from rllib_vlm.env.rollout import EpisodeQueue, RolloutCounts

_WINDOW = 1000  # calls of `sample` between two results; more than there ever are


def log_rollout(
    metrics: MetricsLogger,
    episodes: Sequence[SingleAgentEpisode],
    counts: RolloutCounts,
    queue: EpisodeQueue,
    wall_s: float,
    version: int,
    under_way: int,
) -> None:
    """Logs the table of this module; see there."""
    sums: dict[str, float] = {
        "num_simulator_crashes": counts.crashes,
        "num_simulator_timeouts": counts.timeouts,
        "num_lost_turns": counts.lost_turns,
        "num_replaced_groups": queue.num_replaced,
        "num_generated_tokens": counts.generated_tokens,
        "num_episodes_under_way": under_way,
        **counts.backend,
    }
    for name, total in sums.items():
        metrics.log_value(name, total, reduce="sum")
    for name, value in {
        "time_render_s": counts.render_s,
        "time_generate_s": counts.generate_s,
        "time_simulate_s": counts.simulate_s,
        "time_sample_s": wall_s,
        WEIGHTS_SEQ_NO: version,
    }.items():
        metrics.log_value(name, value, reduce="mean", window=_WINDOW)
    # Runners work at the same time: their rates add up.
    metrics.log_value("tokens_per_s", counts.generated_tokens / wall_s, reduce="sum")
    metrics.log_value("turns_per_s", counts.turns / wall_s, reduce="sum")
    for name, values in _per_episode(episodes).items():
        if values:
            metrics.log_value(name, sum(values) / len(values), reduce="mean", window=_WINDOW)
    played = [e for e in episodes if len(e)]
    simulator: dict[str, list[float]] = defaultdict(list)
    for episode in played:
        for name, value in episode.custom_data[METRICS].items():
            simulator[name].append(value)
    for name, values in simulator.items():
        metrics.log_value(("sim", name), sum(values) / len(values), reduce="mean", window=_WINDOW)
    for episode in played:
        metrics.log_value(EPISODE_LEN_MIN, len(episode), reduce="min")
        metrics.log_value(EPISODE_LEN_MAX, len(episode), reduce="max")
        metrics.log_value(EPISODE_RETURN_MIN, episode.get_return(), reduce="min")
        metrics.log_value(EPISODE_RETURN_MAX, episode.get_return(), reduce="max")


def _per_episode(episodes: Sequence[SingleAgentEpisode]) -> dict[str, list[float]]:
    """Values to average: one per episode, or per turn for what turns have."""
    values: dict[str, list[float]] = defaultdict(list)
    for episode in episodes:
        if not len(episode):
            continue
        values["success_rate"].append(float(episode.custom_data[SUCCESS]))
        values[EPISODE_RETURN_MEAN].append(float(episode.get_return()))
        values[EPISODE_LEN_MEAN].append(float(len(episode)))
        values["episode_actions_mean"].append(float(episode.custom_data["num_actions"]))
        for prompt in episode.get_extra_model_outputs(VLMColumns.PROMPT):
            values["prompt_length"].append(float(len(prompt.token_ids)))
            values["dropped_turns"].append(float(prompt.dropped_turns))
        for parsed in episode.get_extra_model_outputs(VLMColumns.PARSED):
            values["parse_failure_rate"].append(float(not parsed.valid))
        for answer in executed(episode):
            values["response_length"].append(float(len(answer.token_ids)))
            values["truncated_response_rate"].append(float(answer.finish_reason == "length"))
    return values
