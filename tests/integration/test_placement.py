"""Placements on a real cluster: what cannot fit starts nothing, trials reserve all of it, turns change no numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import yaml
from ray.util import get_current_placement_group, placement_group_table
from tiny import MODEL, tiny_config

from rllib_vlm.algorithms import supply
from rllib_vlm.algorithms.placement import demand_of
from rllib_vlm.config import runner
from rllib_vlm.config.loader import load
from rllib_vlm.errors import PlacementError

pytestmark = pytest.mark.usefixtures("ray_cluster")

SMALL = {
    "environment": {"env_config": {"observation": "text", "size": 3, "max_steps": 4}},
    "simulation": {"max_turns": 4},
    "prompting": {"template": "bare", "observation": "text", "invalid_penalty": 0.1},
    "generation": {"max_new_tokens": 5},
    "rl_module": {"model_config": MODEL},
    "training": {"groups_per_update": 2, "group_size": 4},
    "warm_start": {"updates": 0},
    "evaluation": {"evaluation_at": []},
}


def experiment(folder: Path, **more):
    text = yaml.safe_dump(
        {"placed": {"run": "VLMGRPO", "env": "frozen_lake", "stop": {"training_iteration": 1}, **more}}
    )
    (folder / "x.yaml").write_text(text)
    return folder / "x.yaml"


def groups() -> dict[str, str]:
    return {name: group["state"] for name, group in placement_group_table().items()}


def test_gpus_that_are_not_there_are_told_before_anything_starts(tmp_path: Path):
    config = {
        **SMALL,
        "env_runners": {"num_env_runners": 1},
        "learners": {"num_gpus_per_learner": 1, "num_learners": 2},
    }
    (found,) = load(experiment(tmp_path, config=config))
    before, free = groups(), ray.available_resources()
    with pytest.raises(PlacementError, match="one trial needs 2 GPU where there are 0") as refused:
        runner.run(found, storage=tmp_path / "results")
    assert "learners.num_gpus_per_learner" in str(refused.value)
    assert not (tmp_path / "results").exists()
    with pytest.raises(PlacementError, match="one trial needs 2 GPU where there are 0"):
        found.config.build_algo()
    assert groups() == before
    assert ray.available_resources()["CPU"] == free["CPU"]


def test_the_command_says_so_in_a_line_and_a_table(tmp_path: Path):
    file = experiment(tmp_path, config=SMALL)
    command = [
        sys.executable, "-c", "import sys; from rllib_vlm.cli import main; main(sys.argv[1:])",
        "train", "file", str(file), "--storage", str(tmp_path / "results"),
        "--set", "env_runners.num_env_runners=2", "--set", "env_runners.num_gpus_per_env_runner=1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2, done.stderr
    said = done.stderr[done.stderr.index("error: ") :]
    assert said.startswith("error: one trial needs 2 GPU where there are 0\n")
    assert "env runners, each" in said
    assert "Lower env_runners.num_env_runners, env_runners.num_gpus_per_env_runner;" in said
    assert not (tmp_path / "results").exists()


def test_every_variant_of_a_search_space_is_looked_at(tmp_path: Path):
    config = {
        **SMALL,
        "env_runners": {"num_env_runners": {"grid_search": [1, 64]}, "num_cpus_per_env_runner": 1},
    }
    (found,) = load(experiment(tmp_path, config=config))
    with pytest.raises(PlacementError, match="one trial needs 65 CPU where there are 4"):
        runner.run(found, storage=tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_nodes_that_do_not_come_in_time_are_told_too():
    said: list[str] = []
    demand = demand_of(
        tiny_config("ppo").env_runners(custom_resources_per_env_runner={"sim": 1}, num_env_runners=2)
    )
    with pytest.raises(PlacementError, match="one trial needs 2 sim where there are 0"):
        supply.ensure(demand, wait_s=1, tell=said.append)
    assert said == ["waiting 1 s at most for nodes: one trial needs 2 sim where there are 0"]


class Recorder:
    """A callback that writes down what is reserved as a trial begins."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, *, algorithm, **kwargs) -> None:
        own = get_current_placement_group()
        created = [name for name, state in groups().items() if state == "CREATED"]
        record = {"bundles": own.bundle_specs, "created": created, "own": own.id.hex()}
        Path(self.folder, f"{own.id.hex()}.json").write_text(json.dumps(record))


@pytest.mark.long
def test_trials_that_run_at_once_reserve_all_of_it(tmp_path: Path):
    """Four CPUs; a trial has 1 + 0.5 + 1 of them, so that the second waits for the first."""
    config = {
        **SMALL,
        "env_runners": {"num_env_runners": 1, "num_cpus_per_env_runner": 0.5},
        "learners": {"num_learners": 1, "num_cpus_per_learner": 1},
    }
    (found,) = load(experiment(tmp_path, config=config, num_samples=2))
    found.config.callbacks(on_algorithm_init=Recorder(str(tmp_path)))
    outcome = runner.run(found, storage=tmp_path / "results")
    assert not outcome.failures
    records = [json.loads(file.read_text()) for file in tmp_path.glob("*.json")]
    assert len(records) == 2
    for record in records:
        assert record["bundles"] == [{"CPU": 1}, {"CPU": 0.5}, {"CPU": 1}]
        assert record["created"] == [record["own"]]


@pytest.mark.long
def test_taking_turns_changes_no_number():
    found = {}
    for placement in ("separate", "hybrid"):
        config = tiny_config("ppo").training(kl_coeff=0.05, minibatch_size=4)
        config.env_runners(num_env_runners=1).learners(num_learners=1).resources(placement=placement)
        config.evaluation(evaluation_interval=1, evaluation_num_env_runners=1)
        algorithm = config.build_algo()
        try:
            results = [algorithm.train() for _ in range(2)]
            asleep = algorithm.env_runner_group.foreach_env_runner(
                lambda r: r.module.backend._home is not None,  # noqa: SLF001
                local_env_runner=False,
            )
            gap = algorithm.probe_sync()
        finally:
            algorithm.stop()
        assert asleep == [placement == "hybrid"]  # the last who worked were the learners
        assert gap < 1e-3
        learner = results[-1]["learners"]["default_policy"]
        found[placement] = {
            k: learner[k] for k in ("policy_loss", "value_loss", "kl_to_reference", "grad_norm")
        }
        found[placement]["successes"] = results[-1]["evaluation"]["num_successes"]
    assert found["hybrid"] == pytest.approx(found["separate"], rel=1e-6)
