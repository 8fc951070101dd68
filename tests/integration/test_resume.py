"""A run that was interrupted and goes on is the run that was not."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from runs import run
from tiny import tiny_config
from updates import Updates

from rllib_vlm.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("ray_cluster")


def configuration(name, **training):
    return (
        tiny_config(name)
        .training(lr_schedule="linear", total_updates=5, **training)
        .warm_start(updates=2, lr=5e-3)
        .simulation(curriculum={"start": 0.0, "end": 1.0, "updates": 4})
        .debugging(seed=3)
    )


@pytest.mark.parametrize(
    ("name", "training", "runners", "stop"),
    [
        ("ppo", {"kl_coeff": 0.1, "kl_target": 0.01}, 0, 4),
        ("ppo", {"credit": "fitted_gae", "credit_options": {}, "value_loss_coeff": 0.0}, 1, 3),
        ("grpo", {"num_epochs": 2}, 1, 1),
    ],
)
def test_the_same_numbers_come_out(name, training, runners, stop, tmp_path):
    config = configuration(name, **training).env_runners(num_env_runners=runners)
    whole, end = run(config, 6)
    before, _ = run(config, stop, save=tmp_path / "state")
    after, same_end = run(config, 6 - stop, restore=tmp_path / "state")
    assert len(whole[0]) > 30
    for expected, found in zip(whole, [*before, *after], strict=True):
        assert found == pytest.approx(expected, rel=1e-6, nan_ok=True)
    for weight, value in end.items():
        np.testing.assert_array_equal(same_end[weight], value, err_msg=weight)


def test_a_warm_start_goes_on_with_the_demonstrations_it_had(tmp_path):
    config = (
        tiny_config("ppo", observation="vision")
        .training(total_updates=1)
        .warm_start(
            updates=5, lr=5e-3, episodes_per_update=3, buffer_episodes=6, replay_ratio=1.0,
            policy_share=0.5, grounding_updates=2,
        )
        .debugging(seed=3)
    )  # fmt: skip
    whole, end = run(config, 6, save=tmp_path / "end")
    before, _ = run(config, 3, save=tmp_path / "state")
    kept = {file.name for file in (tmp_path / "state" / "demonstrations").iterdir()}
    assert kept == {"grounding.parquet", "imitation.parquet"}, "nothing that must be unpickled"
    after, same_end = run(config, 3, restore=tmp_path / "state")
    for expected, found in zip(whole, [*before, *after], strict=True):
        assert found == pytest.approx(expected, rel=1e-6, nan_ok=True)
    for weight, value in end.items():
        np.testing.assert_array_equal(same_end[weight], value, err_msg=weight)
    assert not (tmp_path / "end" / "demonstrations").exists(), "nothing reads them after the warm start"


def test_a_finished_run_may_be_made_longer(tmp_path):
    config = (
        configuration("grpo")
        .training(total_updates=1, lr_schedule="constant")
        .evaluation(evaluation_at=("final",))
    )
    longer = config.copy(copy_frozen=False).training(total_updates=3)
    whole, end = run(longer, 5)
    short, _ = run(config, 3, save=tmp_path / "state")
    assert "evaluation/success_rate" in short[-1]
    after, same_end = run(longer, 2, restore=tmp_path / "state")
    assert [r["training_iteration"] for r in after] == [4, 5], "the length is that of the whole run"
    assert "evaluation/success_rate" in after[-1] and "evaluation/success_rate" not in after[0]
    for weight, value in end.items():
        np.testing.assert_array_equal(same_end[weight], value, err_msg=weight)
    assert whole[-1]["evaluation/success_rate"] == after[-1]["evaluation/success_rate"]


def test_a_damaged_checkpoint_is_refused_and_the_run_may_take_another(tmp_path):
    config = configuration("ppo")
    run(config, 2, save=tmp_path / "checkpoint_000001")
    run(config, 3, save=tmp_path / "checkpoint_000002")
    weights_file = next((tmp_path / "checkpoint_000002").rglob("*.safetensors"))
    content = weights_file.read_bytes()
    weights_file.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"damaged: .*safetensors.*checkpoint_000001"):
        run(config, 1, restore=tmp_path / "checkpoint_000002")
    results, _ = run(config, 1, restore=tmp_path / "checkpoint_000001")
    assert results[0]["training_iteration"] == 3


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_in_bfloat16_go_on_as_they_are(optimizer):
    """NumPy, in which states are kept, has no such numbers."""
    updates = Updates(optimizer_type=optimizer)
    group = updates.group(model={"dtype": "bfloat16"})
    updates.curve(group, range(3))
    state = copy.deepcopy(group.get_state()["learner"])
    again = updates.group(model={"dtype": "bfloat16"})
    again.set_state({"learner": state})
    assert updates.curve(again, range(3, 6)) == updates.curve(group, range(3, 6))
    found, expected = (one.get_weights()["default_policy"] for one in (again, group))
    assert all(torch.equal(torch.as_tensor(found[name]), torch.as_tensor(w)) for name, w in expected.items())
