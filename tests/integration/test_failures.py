"""Simulators that are killed, hang or raise: the run ends normally, with the right counts."""

from __future__ import annotations

import pytest
from tiny import tiny_config

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.mark.parametrize(
    ("how", "process", "count"),
    [
        ("raise", "inline", "num_simulator_crashes"),
        ("raise", "subprocess", "num_simulator_crashes"),
        ("kill", "subprocess", "num_simulator_crashes"),
        ("hang", "subprocess", "num_simulator_timeouts"),
    ],
)
def test_the_run_goes_on_with_whole_groups_and_counts_what_failed(tmp_path, how, process, count):
    config = tiny_config("grpo").env_runners(num_env_runners=0, num_envs_per_env_runner=3)
    lake = dict(config.env_config)
    # Every second task fails, once: its member is played again with the same seed.
    config.environment(
        "broken_lake:BrokenLake", env_config={**lake, "how": how, "every": 2, "once": str(tmp_path)}
    )
    config.simulation(process=process, turn_deadline_s=2.0 if how == "hang" else 60.0)
    config.training(groups_per_update=6, group_size=2)
    algorithm = config.build_algo()
    try:
        result = algorithm.train()
    finally:
        algorithm.stop()
    failed = len(list(tmp_path.iterdir()))
    sampled = result["env_runners"]
    assert failed > 0
    assert sampled[count] == failed
    assert sampled["num_simulator_crashes"] + sampled["num_simulator_timeouts"] == failed
    assert sampled["num_replaced_groups"] == 0
    assert sampled["num_episodes"] == 12
    assert sampled["num_groups"] == 6
    assert sampled["num_groups_of_one"] == 0


def test_a_task_that_fails_for_good_is_replaced_by_another():
    config = tiny_config("grpo")
    lake = dict(config.env_config)
    config.environment("broken_lake:BrokenLake", env_config={**lake, "how": "raise", "every": 2})
    config.simulation(max_retries=1)
    config.training(groups_per_update=6, group_size=2)
    algorithm = config.build_algo()
    try:
        result = algorithm.train()
    finally:
        algorithm.stop()
    sampled = result["env_runners"]
    assert sampled["num_replaced_groups"] > 0
    # Two failures give a group up; a sibling may have failed at the same time.
    assert sampled["num_simulator_crashes"] >= 2 * sampled["num_replaced_groups"]
    assert sampled["num_episodes"] == 12
    assert sampled["num_groups"] == 6


def test_evaluation_counts_exactly_even_where_a_simulator_fails():
    config = tiny_config("grpo")
    lake = dict(config.env_config)
    config.environment("broken_lake:BrokenLake", env_config={**lake, "how": "raise", "every": 3})
    config.evaluation(evaluation_duration=8)
    algorithm = config.build_algo()
    try:
        record = algorithm.evaluate()
    finally:
        algorithm.stop()
    assert record["num_episodes"] == 8
