"""Sampling while others learn, and episodes that outlive an update, in whole algorithms."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import RayActorError
from runs import figures, run, weights
from tiny import tiny_config

from rllib_vlm.algorithms.sampling_weights import FILE
from rllib_vlm.core.columns import GROUP

pytestmark = pytest.mark.usefixtures("ray_cluster")

UPDATES = 5


def configuration(**training: Any) -> Any:
    return (
        tiny_config("ppo")
        .training(lr_schedule="linear", total_updates=UPDATES, **training)
        .warm_start(updates=1, lr=5e-3)
        .simulation(curriculum={"start": 0.0, "end": 1.0, "updates": 4})
        .debugging(seed=3)
    )


def ahead(config: Any, runners: int = 1) -> Any:
    return config.env_runners(num_env_runners=runners, one_step_off_policy=True)


def wait_for(runner: Any) -> None:
    """Until the new process of an actor that was killed is up."""
    while True:
        try:
            ray.get(runner.ping.remote())
            return
        except RayActorError:
            time.sleep(0.2)


def test_with_weights_that_stay_the_batches_and_losses_are_those_of_the_synchronous_run():
    config = configuration(lr=0.0, kl_coeff=0.1)
    expected, _ = run(config.copy(copy_frozen=False).env_runners(num_env_runners=1), 1 + UPDATES)
    found, _ = run(ahead(config), 1 + UPDATES)
    lags = [result.pop("env_runners/policy_lag", None) for result in found]
    assert lags[1:] == [0.0] + [1.0] * (UPDATES - 1)
    for before, after in zip(expected, found, strict=True):
        # How old weights are differs, and what is asked of runners and not answered yet.
        other = ("policy_lag", "healthy", "outstanding")
        shared = {n: v for n, v in before.items() if n in after and not any(part in n for part in other)}
        assert len(shared) > 30
        assert {n: after[n] for n in shared} == pytest.approx(shared, rel=1e-5, nan_ok=True)


def test_a_resumed_run_samples_by_the_weights_the_interrupted_one_would_have(tmp_path: Path):
    config = ahead(configuration(old_logprobs="learner").evaluation(evaluation_interval=3))
    whole: list[dict[str, float]] = []
    algorithm = config.copy(copy_frozen=False).build_algo()
    try:
        for iteration in range(1 + UPDATES):
            result = algorithm.train()
            whole.append(figures(result))
            learned = result["learners"]["default_policy"]
            if (
                iteration > 1
            ):  # to the learner's own log-probs the update starts at a ratio of 1, whoever sampled
                assert result["env_runners"]["policy_lag"] == 1.0
                assert learned["log_ratio_max"] < 1e-3 < learned["mismatch_log_ratio_max"]
            if iteration == 3:
                assert algorithm._batch is not None  # noqa: SLF001  (it is being sampled)
                algorithm.save_to_path(str(tmp_path / "state"))
        end = weights(algorithm)
        assert algorithm.run_state.task_cursor == 6 + 8 * UPDATES and algorithm._batch is None  # noqa: SLF001
    finally:
        algorithm.stop()
    assert (tmp_path / "state" / FILE).is_file()
    resumed = config.copy(copy_frozen=False).build_algo()
    try:
        resumed.restore_from_path(str(tmp_path / "state"))
        assert resumed.run_state.task_cursor == 6 + 8 * 3, (
            "of the batch that was under way nothing counts as drawn"
        )
        learn = resumed._learn  # noqa: SLF001

        def lose(episodes: Any, plan: Any) -> None:
            """The runner dies while it samples for the next update."""
            resumed._learn = learn  # noqa: SLF001
            (runner,) = resumed.env_runner_group._worker_manager.actors().values()  # noqa: SLF001
            ray.kill(runner, no_restart=False)
            wait_for(runner)
            learn(episodes, plan)

        resumed._learn = lose  # noqa: SLF001
        after = [figures(resumed.train()) for _ in range(2)]
        assert resumed.env_runner_group.num_remote_worker_restarts() == 1
        for expected, found in zip(whole[4:], after, strict=True):
            for name in [n for n in expected if "restart" in n or "healthy" in n]:
                expected.pop(name), found.pop(name, None)
            assert found == pytest.approx(expected, rel=1e-6, nan_ok=True)
        for weight, value in weights(resumed).items():
            np.testing.assert_array_equal(value, end[weight], err_msg=weight)
    finally:
        resumed.stop()


def test_engine_and_learner_agree_when_asked_and_going_back_drops_the_batch_under_way(tmp_path: Path):
    algorithm = ahead(configuration().training(total_updates=20, lr=1e-2)).build_algo()
    try:
        for _ in range(3):
            algorithm.train()
        algorithm.save_to_path(str(tmp_path / "state"))
        algorithm.train()
        assert algorithm._batch is not None  # noqa: SLF001
        assert algorithm.probe_sync() < 1e-3, "it waits for the batch and has the runner take the weights"
        cursor = algorithm.run_state.task_cursor
        algorithm.roll_back(tmp_path / "state", lr_factor=0.5, clip_factor=0.5)
        assert algorithm._batch is None and algorithm.run_state.task_cursor == cursor  # noqa: SLF001
        lags = [algorithm.train()["env_runners"]["policy_lag"] for _ in range(2)]
        assert lags == [0.0, 1.0]
        assert algorithm.run_state.updates == 4
    finally:
        algorithm.stop()


@pytest.mark.parametrize("runners", [0, 2])
def test_stragglers_go_on_in_later_updates_and_every_task_is_learnt_from_once(runners, tmp_path: Path):
    """With runners of their own, they sample ahead too."""
    config = tiny_config("grpo").training(groups_per_update=3, group_size=2, lr=1e-2, total_updates=20)
    config.environment("uneven_lake:UnevenLake", env_config=dict(config.env_config)).simulation(max_turns=9)
    config.env_runners(num_env_runners=runners, partial_rollouts=3, one_step_off_policy=runners > 0)
    algorithm = config.build_algo()
    learnt: list[str] = []
    mixed, lags = 0, []
    give = algorithm._give_credit  # noqa: SLF001

    def watch(episodes: Any) -> None:
        nonlocal mixed
        groups = [e.custom_data[GROUP] for e in episodes]
        assert len(groups) == 6 and groups[::2] == groups[1::2], "whole groups alone"
        learnt.extend(groups[::2])
        mixed += sum(len({a.policy_version for a in e.get_actions()}) > 1 for e in episodes)
        give(episodes)

    def nothing_is_lost() -> None:
        state, tasks = algorithm.run_state, algorithm._tasks  # noqa: SLF001
        assert len(set(learnt)) == len(learnt)
        assert len(state.open_tasks) == 3
        known = {*learnt, *(tasks.at(place).group for place in state.open_tasks)}
        assert known == {tasks.at(place).group for place in range(state.task_cursor)}

    algorithm._give_credit = watch  # noqa: SLF001
    try:
        for _ in range(4):
            lags.append(algorithm.train()["env_runners"]["policy_lag"])
            nothing_is_lost()
        assert mixed > 0 and max(lags) > (1.0 if runners else 0.0)
        algorithm.save_to_path(str(tmp_path / "state"))
        assert algorithm.evaluate()["num_episodes"] == 5
        begun = algorithm.run_state.open_tasks
        algorithm.restore_from_path(str(tmp_path / "state"))
        assert algorithm.run_state.open_tasks == begun, "begun again from their seeds"
        for _ in range(2):
            algorithm.train()
            nothing_is_lost()
    finally:
        algorithm.stop()
