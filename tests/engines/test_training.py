"""Whole runs with shared engines: weights after every update, an engine killed on the way, `rllib train file`."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from tiny import MODEL, tiny_config

from rllib_vlm.errors import ModelError

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(900)]


EPISODES = 24


@pytest.fixture(scope="module")
def algorithm(ray_cluster: None) -> Iterator[Any]:
    """One for all tests here, since engines take long to start: two engines, two runners, adapters."""
    pytest.importorskip("peft")
    algorithm = (
        tiny_config("ppo", observation="vision")
        .generation(backend="vllm", engine={"count": 2, "num_cpus": 0.5, "max_model_len": 512})
        .rl_module(model_config={**MODEL, "lora": {"rank": 2, "target": ["q_proj"]}})
        .env_runners(num_env_runners=2, num_cpus_per_env_runner=0.25)
        .training(groups_per_update=EPISODES)
        .build_algo()
    )
    yield algorithm
    algorithm.stop()


def engine_processes() -> list[psutil.Process]:
    """Of this test's own cluster."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if " ".join(process.cmdline()).startswith("ray::VLLMEngine")
    ]


def test_engines_have_the_learners_weights_after_every_update(algorithm):
    engines = algorithm._engines.engines  # noqa: SLF001
    assert len(engines) == 2
    for update in (1, 2):
        found = algorithm.train()["env_runners"]
        assert found["engine_probe_gap"] < 1e-4
        assert found["policy_lag"] == 0
        assert algorithm.probe_sync() < 1e-4
        versions = ray.get([engine.version.remote() for engine in engines])
        assert versions == [algorithm._engines.version] * 2 and versions[0] >= update  # noqa: SLF001
    assert found["num_prefill_tokens"] > 0


def test_the_probe_tells_other_weights_and_a_sync_puts_them_right(algorithm):
    sync, learners = algorithm._engines, algorithm.learner_group  # noqa: SLF001
    generator = torch.Generator().manual_seed(0)
    for parameter in learners._learner.module["default_policy"].parameters():  # noqa: SLF001
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    assert sync._probe(sync._group, learners) > 0.01  # noqa: SLF001
    assert sync.sync(learners, "other weights")["engine_probe_gap"] < 1e-4
    assert sync.sync(learners, "other weights") == {}, "nothing to do"


def test_a_gap_that_stays_ends_the_run(algorithm, monkeypatch: pytest.MonkeyPatch):
    sync = algorithm._engines  # noqa: SLF001
    monkeypatch.setattr(sync, "_settings", replace(sync._settings, max_probe_gap=0.0))  # noqa: SLF001
    with pytest.raises(ModelError, match="differ by .* nats .* loaded twice"):
        sync.sync(algorithm.learner_group, "less than rounding allows")


def test_a_run_whose_engine_is_killed_goes_on(algorithm):
    killed, _ = engine_processes()
    killer = threading.Timer(0.3, killed.kill)
    killer.start()
    found = algorithm.train()["env_runners"]
    killer.join()
    for _ in range(2):  # where the kill came after the last answer, the next iteration meets a dead engine
        if found["num_engine_restarts"]:
            break
        found = algorithm.train()["env_runners"]
    assert found["num_engine_restarts"] == 1
    assert found["num_episodes"] == EPISODES
    assert found["num_replaced_groups"] == found["num_lost_turns"] == 0
    assert found["engine_probe_gap"] < 1e-4
    pids = {process.pid for process in engine_processes()}
    assert len(pids) == 2 and killed.pid not in pids


def test_engines_end_with_their_algorithm(algorithm):
    algorithm.stop()
    end = time.monotonic() + 30
    while engine_processes():
        assert time.monotonic() < end, "engines outlive their algorithm"
        time.sleep(0.2)


RUN = """
engines:
  run: VLMPPO
  env: frozen_lake
  include: [models/tiny]
  stop: {training_iteration: 2}
  checkpoint_config: {checkpoint_at_end: true}
  config:
    environment: {env_config: {observation: vision, size: 3, max_steps: 4, image_size: 56}}
    env_runners: {num_env_runners: 1, num_envs_per_env_runner: 4, num_cpus_per_env_runner: 0.25}
    learners: {num_learners: 1, num_cpus_per_learner: 0.25, torch_threads: 1}
    simulation: {max_turns: 4}
    prompting: {template: bare}
    generation: {backend: vllm, max_new_tokens: 5, temperature: 0.7, engine: {num_cpus: 0.25}}
    training: {groups_per_update: 8, total_updates: 2, lr: 1.0e-3, row_tokens: 512}
    evaluation: {evaluation_duration: 4, evaluation_at: [final]}
    callbacks: [report]
"""


def test_rllib_train_file(tmp_path: Path):
    (tmp_path / "x.yaml").write_text(RUN)
    rllib = str(Path(sys.executable).with_name("rllib"))
    done = subprocess.run(
        [rllib, "train", "file", str(tmp_path / "x.yaml"), "--storage", str(tmp_path), "--name", "run"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = (tmp_path / "run").glob("**/result.json")
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(records) == 2
    for record in records:
        assert record["env_runners"]["engine_probe_gap"] < 1e-4
        assert record["learners"]["default_policy"]["sampler_gap"] < 1e-4
        assert np.isfinite(record["learners"]["default_policy"]["policy_loss"])
    assert records[-1]["evaluation"]["num_episodes"] == 4
