"""The main job on three Ray nodes of this machine, one of which is lost while episodes are played on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playing import FOLDER
from ray.cluster_utils import Cluster

UPDATES, EPISODES = 3, 8
SPOC = Path(__file__).parents[2] / "tuned_examples" / "spoc.yaml"
SUPPORT = Path(__file__).parents[1] / "support"
# Small and short; who runs where is said by the nodes' own resources, as docs/cluster.md has it.
SHORT = (
    "warm_start.updates=0",
    "simulation.max_turns=4",
    f"training.groups_per_update={EPISODES}",
    f"training.total_updates={UPDATES}",
    "training.minibatch_size=8",
    "training.precision=float32",
    "env_runners.num_envs_per_env_runner=2",
    "evaluation.evaluation_at=[final]",
    "evaluation.evaluation_duration=2",
    "evaluation.evaluation_config={temperature: 0.5, max_turns: 4}",
    "resources.placement_strategy=SPREAD",
    "resources.custom_resources_for_main_process={learn: 0.1}",
    "learners.custom_resources_per_learner={learn: 0.1}",
    "env_runners.custom_resources_per_env_runner={sim: 1}",
    "callbacks=[report, guard, 'playing:Playing']",
)


@pytest.fixture
def playing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where nodes say that episodes are being played on them."""
    folder = tmp_path / "playing"
    folder.mkdir()
    monkeypatch.setenv(FOLDER, str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder


@pytest.fixture
def cluster(playing: Path) -> Iterator[Cluster]:
    """A head that learns, and two nodes with room for two env runners each; they inherit this environment."""
    found = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False, "resources": {"learn": 1}},
    )
    try:
        for _ in range(2):
            found.add_node(num_cpus=1, resources={"sim": 2})
        yield found
    finally:
        found.shutdown()


def player(nodes: Iterable[Any], folder: Path) -> Any:
    """One of the nodes on which an episode has gone on since the folder was emptied, or None."""
    found = {file.name for file in folder.iterdir()}
    return next((n for n in nodes if str(n.all_processes["raylet"][0].process.pid) in found), None)


def results(folder: Path) -> list[dict[str, Any]]:
    lines = [line for file in folder.glob("*/result.json") for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines if line.endswith("}")]  # the last one may be being written


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_main_job_finishes_though_a_node_is_lost_during_rollout(
    cluster: Cluster, playing: Path, tmp_path: Path
):
    overrides = [part for assignment in SHORT for part in ("--set", assignment)]
    command = [
        str(Path(sys.executable).with_name("rllib")), "train", "file", str(SPOC), "--ray-address", cluster.address,
        "--storage", str(tmp_path), "--name", "run", *overrides,
    ]  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    while not results(tmp_path / "run"):  # the first update: all of it has worked once
        assert run.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    for file in playing.iterdir():
        file.unlink()
    while (lost := player(cluster.worker_nodes, playing)) is None:
        assert run.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.02)
    cluster.remove_node(lost, allow_graceful=False)
    assert run.wait() == 0, (tmp_path / "log").read_text()

    found = results(tmp_path / "run")
    assert [r["num_updates"] for r in found] == list(range(1, UPDATES + 1))
    for record in found:  # whole updates, whoever played them
        assert record["env_runners"]["num_episodes"] == EPISODES
    told = [r["fault_tolerance"] for r in found]
    assert any(t["num_healthy_workers"] < 2 or t["num_remote_worker_restarts"] for t in told)
    assert found[-1]["evaluation"]["num_episodes"] == 2
    (summary,) = (tmp_path / "run").glob("*/results.json")
    assert json.loads(summary.read_text())["final"]["episodes"] == 2
