"""The HOWTO's file is complete: it is written down as it stands and checked."""

import importlib.util
import math
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from rllib_vlm.config.loader import load, validate
from rllib_vlm.sims.check import check_simulator

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


def load_corridor(folder: Path, monkeypatch):
    package = folder / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    file = package / "corridor.py"
    file.write_text(blocks("python")[0], encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("my_package.corridor", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "my_package.corridor", module)
    spec.loader.exec_module(module)
    return module.Corridor


def test_the_simulator_of_the_howto_keeps_the_contract(tmp_path, monkeypatch):
    check_simulator(load_corridor(tmp_path, monkeypatch))


def test_its_expert_walks_to_the_door(tmp_path, monkeypatch):
    corridor = load_corridor(tmp_path, monkeypatch)()
    corridor.reset(seed=3)
    expert, over = corridor.expert(max_actions=2), False
    while not over:
        *_, terminated, truncated, info = corridor.turn(expert().actions)
        over = terminated or truncated
    assert info["success"]


def test_the_experiment_of_the_howto_is_valid(tmp_path, monkeypatch):
    load_corridor(tmp_path, monkeypatch)
    file = tmp_path / "corridor.yaml"
    file.write_text(blocks("yaml")[0], encoding="utf-8")
    assert list(yaml.safe_load(file.read_text())) == ["corridor"]
    assert validate(file)


@pytest.mark.usefixtures("ray_cluster")
def test_the_experiment_of_the_howto_trains(tmp_path, monkeypatch):
    """One iteration of its warm start, at a hundredth of the size."""
    load_corridor(tmp_path, monkeypatch)
    file = tmp_path / "corridor.yaml"
    file.write_text(blocks("yaml")[0], encoding="utf-8")
    wishes = (
        "env_runners.num_env_runners=0",
        "warm_start.episodes_per_update=4",
        "evaluation.evaluation_at=[]",
    )
    (experiment,) = load(file, overrides=wishes)
    algorithm = experiment.config.build_algo()
    try:
        result = algorithm.train()
    finally:
        algorithm.stop()
        shutil.rmtree(algorithm.logdir)
    assert result["phase"] == "warm_start"
    assert result["env_runners"]["success_rate"] == 1.0  # the expert's
    assert math.isfinite(result["learners"]["default_policy"]["imitation_loss"])
