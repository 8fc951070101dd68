"""The files of docs/cluster.md are what Ray 2.60 and we read, as far as that can be told without machines."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

from rllib_vlm.algorithms.placement import demand_of
from rllib_vlm.config.loader import load

TEXT = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")


def blocks(language: str, holding: str) -> list[str]:
    return [b for b in re.findall(rf"```{language}\n(.*?)```", TEXT, re.S) if holding in b]


def test_ray_up_takes_its_file():
    (text,) = blocks("yaml", "cluster_name")
    config = yaml.safe_load(text)
    prepared = prepare_config(config)
    validate_config(prepared)
    kinds = prepared["available_node_types"]
    assert sum(kind.get("min_workers", 0) for kind in kinds.values()) == len(config["provider"]["worker_ips"])
    with pytest.raises(jsonschema.ValidationError, match="sshuser"):
        validate_config({**prepared, "auth": {"sshuser": "me"}})


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return spec["template"]["spec"]["containers"]


def test_the_ray_job_gives_its_nodes_the_resources_that_roles_ask_for():
    (text,) = blocks("yaml", "RayJob")
    cluster = yaml.safe_load(text)["spec"]["rayClusterSpec"]
    there: dict[str, float] = {}
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        (resources,) = shlex.split(
            group["rayStartParams"]["resources"]
        )  # KubeRay writes it into a shell's line
        limits = containers(group)[0]["resources"]["limits"]
        amounts = json.loads(resources) | {
            "GPU": float(limits.get("nvidia.com/gpu", 0)),
            "CPU": float(limits["cpu"]),
        }
        for name, amount in amounts.items():
            there[name] = there.get(name, 0.0) + group["replicas"] * amount
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        mounted = {m["name"] for c in containers(group) for m in c["volumeMounts"]}
        assert mounted <= {v["name"] for v in group["template"]["spec"]["volumes"]}
    for name, amount in demand_of(placed().config).total.items():
        assert amount <= there[name], name


def placed() -> Any:
    (text,) = blocks("yaml", "# placed.yaml")
    with tempfile.TemporaryDirectory() as temporary:
        where = Path(temporary)
        (where / "placed.yaml").write_text(text)
        (where / "mine.yaml").write_text(
            "mine: {run: VLMPPO, env: spoc, include: [tasks/fetch, models/household, placed]}"
        )
        (experiment,) = load(where / "mine.yaml")
    return experiment


def test_the_fragment_is_a_valid_one():
    assert demand_of(placed().config).total["sim"] == 16


def test_shells_and_ray_read_the_command_lines(tmp_path: Path):
    scripts = blocks("bash", "")
    assert len(scripts) == 3
    for script in scripts:
        (tmp_path / "script").write_text(script)
        done = subprocess.run(
            ["bash", "-n", str(tmp_path / "script")], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    (slurm,) = blocks("bash", "#SBATCH")
    command = slurm[slurm.index("srun ray symmetric-run") :].replace("\\\n", " ")
    words = shlex.split(command)[3:]
    # The numbers are the job's environment's.
    words = ["1" if word.startswith("$") and ":6379" not in word else word for word in words]
    assert curate_and_validate_ray_start_args(words[: words.index("--")])
