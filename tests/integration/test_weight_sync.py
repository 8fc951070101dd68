"""Runners have the learner's weights after every update, and what is frozen is sent to them once."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import MODEL, tiny_config

pytestmark = pytest.mark.usefixtures("ray_cluster")


def of_runner(algorithm):
    (found,) = algorithm.env_runner_group.foreach_env_runner(
        lambda runner: (
            {n: np.array(v) for n, v in runner.module.get_state().items()},
            runner._weights._frozen_key,  # noqa: SLF001
        ),
        local_env_runner=False,
    )
    return found


def of_learner(algorithm):
    found = algorithm.learner_group.get_weights()["default_policy"]
    return {n: np.array(v) for n, v in found.items() if not n.startswith("value_head.")}


def test_adapters_alone_are_sent_and_everything_is_there(tmp_path):
    config = tiny_config("ppo").rl_module(model_config={**MODEL, "lora": {"rank": 2, "target": ["q_proj"]}})
    algorithm = config.env_runners(num_env_runners=1).build_algo()
    try:
        first, key = of_runner(algorithm)
        algorithm.train()
        second, same = of_runner(algorithm)
        assert key and same == key
        moved = {name for name in first if not np.array_equal(first[name], second[name])}
        assert moved and all(".lora_" in name for name in moved)
        learner = of_learner(algorithm)
        assert second.keys() == learner.keys()
        for name, value in learner.items():
            np.testing.assert_array_equal(second[name], value)
        # A checkpoint's frozen weights may be others than those a runner has.
        where = algorithm.save_to_path(str(tmp_path / "checkpoint"))
        algorithm.restore_from_path(where)
        third, other = of_runner(algorithm)
        assert other != key
        for name, value in of_learner(algorithm).items():
            np.testing.assert_array_equal(third[name], value)
    finally:
        algorithm.stop()
