"""Episodes that go on beyond an update, on a real runner with a real tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from tiny import tiny_config
from uneven_lake import STEPS

from rllib_vlm.core.columns import TASK_SEED, VLMColumns
from rllib_vlm.core.probe import log_ratio_max
from rllib_vlm.env.tasks import Task
from rllib_vlm.env.vlm_env_runner import VLMEnvRunner


@pytest.fixture
def runner() -> Iterator[VLMEnvRunner]:
    """Four slots; an untaught policy idles, so that episodes are as long as their tasks."""
    config = tiny_config("grpo").training(group_size=2).simulation(max_turns=max(STEPS))
    config.prompting(history="full", template="default")
    config.environment("uneven_lake:UnevenLake", env_config=dict(config.env_config))
    runner = VLMEnvRunner(config=config, worker_index=0, num_workers=0)
    yield runner
    runner.stop()


def tasks(*numbers: int) -> dict[int, Task]:
    return {number: Task("train", number) for number in numbers}


def load(runner: VLMEnvRunner, first: dict[str, Any], version: int) -> None:
    scaled = {n: v * (1.0 - 0.3 * version) if v.ndim > 1 else v for n, v in first.items()}
    runner.set_state({"rl_module": scaled, WEIGHTS_SEQ_NO: version})


def versions(episode: Any) -> list[int]:
    return [answer.policy_version for answer in episode.get_actions()]


def test_an_episode_goes_on_with_new_weights_and_each_answer_is_of_the_weights_it_names(runner):
    first = {name: np.array(value) for name, value in runner.module.get_state().items()}
    episodes, given, held = [], [], [0, 1, 2, 3]
    for update in (1, 2, 3):
        load(runner, first, update)
        played = runner.play_open_groups(tasks(*held), wanted=2, seed=update)
        assert played.error is None and len(played.numbers) == 2 and len(played.items) == 4
        seeds = [episode.custom_data[TASK_SEED] for episode in played.items]
        assert seeds == [n for n in played.numbers for _ in range(2)], "whole groups"
        episodes += played.items
        given += played.numbers
        held = [n for n in held if n not in played.numbers] + [2 * update + 2, 2 * update + 3]
        root = MetricsLogger(root=True)
        root.aggregate([played.metrics])
        assert root.compile()["num_episodes_under_way"] == runner._open[0].num_under_way > 0  # noqa: SLF001
    assert given[:4] == [0, 1, 3, 4], "the long one of task 2 does not hold up the others"
    assert 2 in given and len(set(given)) == len(given)
    for episode in episodes:
        episode.validate()
        assert episode.is_done and len(episode) <= STEPS[episode.custom_data[TASK_SEED] % 3]
        assert versions(episode) == sorted(versions(episode))
    long = [episode for episode in episodes if episode.custom_data[TASK_SEED] == 2]
    assert len(long) == 2 and all(len(set(versions(e))) >= 2 for e in long)
    # Keys and values of the weights before are not read any more.
    gaps = {}
    for version in (1, 2, 3):
        said = [
            pair
            for e in episodes
            for pair in zip(e.get_extra_model_outputs(VLMColumns.PROMPT), e.get_actions(), strict=True)
        ]
        own = [pair for pair in said if pair[1].policy_version == version]
        other = [pair for pair in said if pair[1].policy_version != version]
        load(runner, first, version)
        learner = SimpleNamespace(module={"default_policy": runner.module.like(runner.module.state_dict())})
        gaps[version] = log_ratio_max(learner, own), log_ratio_max(learner, other)
    assert all(own < 1e-3 < 1e-2 < other for own, other in gaps.values()), gaps


def test_what_is_played_in_between_has_them_begin_again(runner):
    first = {name: np.array(value) for name, value in runner.module.get_state().items()}
    load(runner, first, 1)
    assert runner.play_open_groups(tasks(0, 1, 2), wanted=1, seed=1).numbers == (0,)
    assert runner._open[0].num_under_way > 0  # noqa: SLF001
    load(runner, first, 2)
    assert len(runner.play_heldout([Task("heldout", 5)]).items) == 1
    assert runner._open is None and runner.pool.num_busy == 0  # noqa: SLF001
    assert len(runner.module.backend.cache) == 0, "nothing is left of their conversations"
    played = runner.play_open_groups(tasks(1, 2), wanted=2, seed=2)
    assert played.numbers == (1, 2)
    assert {v for episode in played.items for v in versions(episode)} == {2}
