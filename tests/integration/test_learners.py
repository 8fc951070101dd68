"""Two learners take the steps that one would."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from tiny import tiny_config

from rllib_vlm.batching.sharding import shard_groups, trajectory_tokens
from rllib_vlm.connectors.trajectories import to_trajectory
from rllib_vlm.core.columns import GROUP, INDEX, VLMColumns
from rllib_vlm.core.step_guard import StepGuard
from rllib_vlm.core.update_plan import UpdatePlan
from rllib_vlm.env.vlm_env_runner import VLMEnvRunner
from rllib_vlm.errors import CheckpointError, LearnerError
from rllib_vlm.types import Detection

pytestmark = pytest.mark.usefixtures("ray_cluster")


def group_of(config, spaces, learners):
    config = config.copy(copy_frozen=False).learners(num_learners=learners, num_cpus_per_learner=0.5)
    spec = config.get_multi_rl_module_spec(spaces=spaces, inference_only=False)
    return config, config.build_learner_group(rl_module_spec=spec)


def weights(group):
    found = group.get_weights()["default_policy"]
    return {name: np.array(value) for name, value in found.items()}


def tell(episodes, family):
    """Labels every picture, each with other words."""
    words = [f"{colour} {kind}" for colour in ("red", "blue", "pink") for kind in ("mug", "ball", "duck")]
    for i, episode in enumerate(episodes):
        prompts = episode.extra_model_outputs[VLMColumns.PROMPT]
        for k in range(len(prompts)):
            found = Detection(
                image=0, x=0.1, y=0.1, words=words[(i + k) % 9], place=f"left {i} {k}", named=k > 1
            )
            prompts[k] = family.label(prompts[k], [found], images=1)


@pytest.mark.parametrize(
    ("minibatch_size", "told", "guard"),
    [
        (None, False, StepGuard()),
        (7, False, StepGuard(max_kl=1e-4)),  # stops both at the same step
        (7, True, StepGuard()),
    ],
)
def test_two_learners_equal_one(minibatch_size, told, guard):
    config = tiny_config("ppo", observation="vision").training(normalize_advantages=True, row_tokens=160)
    runner = VLMEnvRunner(config=config, worker_index=0, num_workers=0)
    episodes = runner.sample(num_episodes=9)
    spaces = runner.get_spaces()
    if told:
        tell(episodes, runner.module.family)
    runner.stop()
    for index, episode in enumerate(episodes):
        episode.custom_data[INDEX] = index
    losses = config.loss_settings()
    if told:
        losses = replace(losses, coefficients={"imitation": 1.0, "grounding": 1.0, "referring": 1.0})
    plan = UpdatePlan(
        losses=losses,
        lr=1e-2,
        num_epochs=2,
        minibatch_size=minibatch_size,
        seed=3,
        normalize_advantages=True,
        guard=guard,
    )
    results, after, metrics = {}, {}, {}
    for learners in (0, 2):
        own, group = group_of(config, spaces, learners)
        try:
            start = weights(group)
            if learners:
                shards = shard_groups(
                    [e.custom_data[GROUP] for e in episodes],
                    [trajectory_tokens(to_trajectory(e)) for e in episodes],
                    learners,
                )
                refs = [ray.put([episodes[i] for i in shard]) for shard in shards]
                results[learners] = group.update(episodes_refs=refs, plan=plan, timesteps={})
                states = [r.get() for r in group.foreach_learner(lambda x: x.get_state()["rl_module"])]
                for name, value in states[0]["default_policy"].items():
                    np.testing.assert_array_equal(states[1]["default_policy"][name], value)
            else:
                results[learners] = group.update(episodes=episodes, plan=plan, timesteps={})
            after[learners] = weights(group)
        finally:
            group.shutdown()
        metrics[learners] = [float(r["default_policy"]["grad_norm"].peek()) for r in results[learners]]
        if learners == 0:
            assert max(np.abs(after[0][k] - start[k]).max() for k in start) > 1e-3  # something was learned
    np.testing.assert_allclose(metrics[2], metrics[0][0], rtol=1e-4)
    guarded = [float(r["default_policy"]["num_guarded_steps"].peek()) for n in (0, 2) for r in results[n]]
    assert guarded == [float(guard.watches)] * 3
    # AdamW's first steps are lr * sign(g): where g is rounding noise only, which depends on the processor, they differ.
    off = np.concatenate([np.abs(after[2][name] - value).ravel() for name, value in after[0].items()])
    assert off.max() < 2e-3 and (off > 2e-4).mean() < 1e-4, (off.max(), (off > 2e-4).mean())


def test_a_learner_that_fails_does_not_leave_the_others_waiting():
    config = tiny_config("ppo", observation="vision")
    runner = VLMEnvRunner(config=config, worker_index=0, num_workers=0)
    episodes = runner.sample(num_episodes=8)
    spaces = runner.get_spaces()
    runner.stop()
    for index, episode in enumerate(episodes):
        episode.custom_data[INDEX] = index
    prompts = episodes[0].extra_model_outputs[VLMColumns.PROMPT]
    prompts[0] = replace(prompts[0], images=())  # its tokens still speak of a picture
    plan = UpdatePlan(losses=config.loss_settings(), lr=1e-2)
    _, group = group_of(config, spaces, 2)
    shards = [ray.put(episodes[:4]), ray.put(episodes[4:])]
    try:
        with ThreadPoolExecutor(1) as pool:
            update = pool.submit(group.update, episodes_refs=shards, plan=plan, timesteps={})
            with pytest.raises(ray.exceptions.RayError, match=r"image|[Cc]onnection|closed"):
                update.result(timeout=120)
    finally:
        group.shutdown()


def _dies(*args, **kwargs):
    os._exit(1)


def _raises(*args, **kwargs):
    raise OSError("no space left on device")


def arm(algorithm, method, fault):
    """The learner's module, which it writes and reads in the middle of its own part, ends it or raises."""
    algorithm.learner_group.foreach_learner(func=lambda learner: vars(learner.module).update({method: fault}))


@pytest.mark.parametrize("fault", [_dies, _raises])
def test_what_a_learner_did_not_write_is_no_checkpoint_and_what_it_did_not_read_is_no_state(tmp_path, fault):
    config = (
        tiny_config("ppo").training(groups_per_update=1).learners(num_learners=1, num_cpus_per_learner=0.5)
    )
    algorithm = config.build_algo()
    try:
        whole = algorithm.save_to_path(str(tmp_path / "whole"))
        arm(algorithm, "restore_from_path", fault)
        with pytest.raises(LearnerError, match="1 of 1 learner processes"):
            algorithm.restore_from_path(whole)
    finally:
        algorithm.stop()
    algorithm = config.build_algo()
    try:
        algorithm.restore_from_path(whole)
        arm(algorithm, "save_to_path", fault)
        for place in (tmp_path / "torn", Path(whole)):  # nor is what stood there before
            with pytest.raises(LearnerError if fault is _dies else OSError, match="learner"):
                algorithm.save_to_path(str(place))
            with pytest.raises(CheckpointError, match="is damaged"):
                algorithm.restore_from_path(str(place))
            if fault is _dies:
                break
        if fault is _dies:
            with pytest.raises(LearnerError, match="1 of 1 learner processes"):
                algorithm.train()
        else:  # a full disk ends the write and not the run
            assert algorithm.train()["num_updates"] == 1
    finally:
        algorithm.stop()
