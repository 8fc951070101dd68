"""DeepSpeed learns what plain torch learns: every ZeRO stage, any number of learners, and across a resumption."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_config
from transformers import Qwen2_5_VLForConditionalGeneration
from updates import Updates, weights

from rllib_vlm.core.step_guard import StepGuard

pytest.importorskip("deepspeed", reason="pip install 'rllib_vlm[deepspeed]'")

# The smallest weights are in parts, too, which DeepSpeed would keep whole.
EVERYTHING = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}


@pytest.fixture(scope="module")
def text() -> Updates:
    return Updates(grad_clip=0.5)


@pytest.fixture(scope="module")
def vision() -> Updates:
    return Updates(observation="vision", grad_clip=0.5)


@pytest.fixture(scope="module")
def plain(text: Updates) -> list[dict[str, float]]:
    """Twenty updates by the plain engine, alone."""
    return text.curve(text.group(), range(20))


class Plain(NamedTuple):
    """Four updates from pictures by the plain engine, alone: two of imitation, one of PPO, one of the critic."""

    start: dict[str, np.ndarray]
    curve: list[dict[str, float]]
    end: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def plain_vision(vision: Updates) -> Plain:
    group = vision.group()
    return Plain(weights(group), vision.curve(group, range(4)), weights(group))


def settings(name: str) -> dict:
    """ "2", "3 offloaded"..."""
    stage = int(name[0])
    return {
        "engine": "deepspeed",
        "zero_stage": stage,
        "offload_optimizer": "cpu" if "offloaded" in name else "none",
        "engine_options": EVERYTHING if stage == 3 else {},
    }


def assert_same_curve(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    for update, (own, other) in enumerate(zip(found, expected, strict=True)):
        assert own.keys() == other.keys()
        for name, value in other.items():
            # A loss near 0 is a difference of larger numbers, of the size of what it is the mean of.
            assert own[name] == pytest.approx(value, rel=1e-3, abs=1e-5), f"{name} of update {update}"


def test_twenty_updates_have_the_losses_of_the_plain_engine(text, plain):
    assert max(c["grad_norm"] for c in plain) > 0.5, "so that gradients are clipped"
    assert plain[1]["imitation_loss"] < plain[0]["imitation_loss"]
    group = text.group(**settings("2"))
    assert_same_curve(text.curve(group, range(20)), plain)


@pytest.mark.parametrize("name", ["0", "1", "1 offloaded", "2 offloaded", "3", "3 offloaded"])
def test_every_stage_learns_the_same(name, vision, plain_vision):
    group = vision.group(**settings(name))
    start = weights(group)
    for weight, value in plain_vision.start.items():
        np.testing.assert_array_equal(start[weight], value)
    assert_same_curve(vision.curve(group, range(4)), plain_vision.curve)
    after = weights(group)
    assert max(np.abs(after[k] - start[k]).max() for k in after) > 1e-3
    for weight, value in plain_vision.end.items():
        np.testing.assert_allclose(after[weight], value, atol=2e-4, err_msg=weight)


@pytest.mark.parametrize("name", ["2", "3", "2 offloaded"])
def test_weights_in_bfloat16_keep_float32_copies(name, text, plain):
    group = text.group(model={"dtype": "bfloat16"}, **settings(name))
    found = text.curve(group, range(4))
    for own, other in zip(found[:2], plain[:2], strict=True):
        assert own["imitation_loss"] == pytest.approx(other["imitation_loss"], rel=0.05)
    masters = group.get_state()["learner"]["optimizer"]["default_policy_adamw"]["state"]["state"]
    after = weights_of(group)
    assert {str(v.dtype) for k, v in after.items() if k.startswith("model.")} == {"torch.bfloat16"}
    copies = [state["master"] for state in masters.values()]
    assert all(str(copy.dtype) == "float32" for copy in copies)
    # Steps far smaller than bfloat16 can tell add up in the copies.
    before = weights_of(group)
    text.curve(group, range(2, 4), lr=1e-7, value_lr=1e-7)
    again = group.get_state()["learner"]["optimizer"]["default_policy_adamw"]["state"]["state"]
    assert any(not np.array_equal(again[i]["master"], masters[i]["master"]) for i in masters)
    same = [torch.equal(weights_of(group)[k], before[k]) for k in before if k.startswith("model.")]
    assert sum(same) > len(same) / 2


def weights_of(group) -> dict[str, torch.Tensor]:
    found = group.get_weights()["default_policy"]
    return {
        k: torch.as_tensor(np.array(v)) if isinstance(v, np.ndarray) else v.clone() for k, v in found.items()
    }


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("name", ["2", "3"])
def test_two_learners_equal_one(name, vision, plain_vision):
    two = vision.group(num_learners=2, **settings(name))
    try:
        assert_same_curve(vision.curve(two, range(4)), plain_vision.curve)
        after = weights(two)
        for weight, value in plain_vision.end.items():
            np.testing.assert_allclose(after[weight], value, atol=2e-4, err_msg=weight)
        # And state in parts is not given out as if it were whole.
        with pytest.raises(Exception, match="lies in parts"):
            two.get_state()
    finally:
        two.shutdown()


def test_clipping_clips(text):
    """Decay apart, AdamW's step does not see a gradient's size; its moments do."""
    moments = {}
    for bound in (None, 0.01):
        own = Updates(grad_clip=bound)
        own.episodes, own.spaces = text.episodes, text.spaces
        for name in ("0", "2", "3"):
            group = own.group(**settings(name))
            (reported,) = own.curve(group, range(1), minibatch_size=None)
            state = group.get_state()["learner"]["optimizer"]["default_policy_adamw"]["state"]["state"]
            squares = sum(float(np.square(s["exp_avg"] / 0.1).sum()) for s in state.values())
            moments[bound, name] = (reported["grad_norm"], math.sqrt(squares))
    for name in ("0", "2", "3"):
        norm, learnt = moments[None, name]
        assert norm > 1.0 and learnt == pytest.approx(norm, rel=1e-3)
        clipped_norm, clipped = moments[0.01, name]
        assert clipped_norm == pytest.approx(norm, rel=1e-3), "what is reported is the norm before clipping"
        assert clipped == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("name", ["0", "2 offloaded", "3"])
def test_a_step_that_is_refused_leaves_everything_as_it_was(name, text):
    group = text.group(**settings(name))
    text.curve(group, range(3))
    before, state = weights(group), moments_of(group)
    reported = text.learn(group, text.plan(4, guard=StepGuard(max_grad_norm=1e-6, action="skip")))
    assert reported["num_guarded_steps"] == reported["num_optimizer_steps"] > 0
    text.learn(group, text.plan(4, guard=StepGuard(max_kl=1e-5, action="abandon"), lr=0.1))
    reported = text.learn(group, broken_plan(text))
    assert reported["num_skipped_steps"] == reported["num_optimizer_steps"] > 0
    for weight, value in weights(group).items():
        np.testing.assert_array_equal(value, before[weight], err_msg=weight)
    for own, other in zip(moments_of(group), state, strict=True):
        np.testing.assert_array_equal(own, other)
    # And what was refused does not come back with the next step.
    other = text.group(**settings(name))
    text.curve(other, range(3))
    assert_same_curve(text.curve(group, range(5, 7)), text.curve(other, range(5, 7)))


def broken_plan(updates: Updates):
    """Whose loss is not finite: a coefficient beyond float32."""
    plan = updates.plan(4)
    return replace(plan, losses=replace(plan.losses, coefficients={"policy": 1e39, "value": 1e39}))


def moments_of(group) -> list[np.ndarray]:
    state = group.get_state()["learner"]["optimizer"]["default_policy_adamw"]["state"]["state"]
    return [
        np.array(state[i][k], copy=True) for i in sorted(state) for k in ("exp_avg", "exp_avg_sq", "step")
    ]


# Runs: checkpoints, export, the command line.


def configuration(name: str | None, learners: int):
    """A short run of PPO with a KL to the policy that it began with, in one process for the sampling."""
    config = (
        tiny_config("ppo", observation="vision")
        .training(lr_schedule="linear", total_updates=6, kl_coeff=0.05, minibatch_size=12)
        .warm_start(updates=1, lr=5e-3)
        .debugging(seed=3)
        .learners(num_learners=learners, num_cpus_per_learner=0.25)
    )
    return config.learners(**settings(name)) if name else config


def train(config, iterations: int, restore: Path | None = None, save: Path | None = None):
    """What each iteration reports, and the weights at the end."""
    algorithm = config.build_algo()
    try:
        if restore is not None:
            algorithm.restore_from_path(str(restore))
        reports = [algorithm.train()["learners"]["default_policy"] for _ in range(iterations)]
        names = ("policy_loss", "value_loss", "kl_to_reference", "grad_norm", "lr")
        curve = [{k: float(r[k]) for k in names if k in r and np.isfinite(float(r[k]))} for r in reports]
        if save is not None:
            algorithm.save_to_path(str(save))
        return curve, weights(algorithm.learner_group)
    finally:
        algorithm.stop()


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_goes_on_with_fewer_learners_more_learners_and_another_engine(tmp_path: Path):
    whole, end = train(configuration(None, 0), 4)
    one, _ = train(configuration("3", 0), 1, save=tmp_path / "a")
    two, _ = train(configuration("2", 2), 2, restore=tmp_path / "a", save=tmp_path / "b")
    last, same_end = train(configuration(None, 0), 1, restore=tmp_path / "b")
    assert_same_curve([*one, *two, *last], whole)
    for weight, value in end.items():
        np.testing.assert_allclose(same_end[weight], value, atol=1e-3, err_msg=weight)
    folder = tmp_path / "b" / "learner_group" / "learner" / "rl_module" / "default_policy"
    opened = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "hf")
    assert sum(p.numel() for p in opened.parameters()) > 10_000
    assert load_file(folder / "value_head.safetensors").keys()
    assert not list((tmp_path / "b").rglob("*.pt")), "nothing of DeepSpeed's own, which is pickled"


@pytest.mark.long
def test_the_example_runs_compiles_nothing_and_goes_on_with_other_learners(tmp_path: Path):
    """Two iterations of `rllib train file` with no compiler to be found, then a third by ZeRO-3 on one learner."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "CC": "/nowhere/cc", "CXX": "/nowhere/c++",
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"),
    }  # fmt: skip

    def rllib(*arguments: str) -> list[dict[str, Any]]:
        done = subprocess.run(
            [Path(sys.executable).with_name("rllib"), "train", *arguments],
            capture_output=True, text=True, env=environment, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        (trial,) = (tmp_path / "run").glob("*/result.json")
        return [json.loads(line) for line in trial.read_text().splitlines()]

    told = rllib(
        "file", "frozen_lake_deepspeed", "--stop", "training_iteration=2", "--storage", str(tmp_path), "--name", "run",
        "--set", "training.groups_per_update=8", "--set", "warm_start.episodes_per_update=8",
    )  # fmt: skip
    assert len(told) == 2
    assert not list((tmp_path / "extensions").glob("**/*.so"))
    told = rllib(
        "file", "frozen_lake_deepspeed", "--resume", str(tmp_path / "run"), "--stop", "training_iteration=3",
        "--set", "learners.num_learners=1", "--set", "learners.zero_stage=3",
    )  # fmt: skip
    assert [record["training_iteration"] for record in told] == [1, 2, 3]
    learners = told[-1]["config"]
    assert (learners["num_learners"], learners["zero_stage"]) == (1, 3)
    assert np.isfinite(told[-1]["learners"]["default_policy"]["policy_loss"])
