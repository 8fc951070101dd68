"""Whole runs with shared engines: weights after every update, and whoever is killed on the way."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from killable import WORKERS, Run, number, results
from tiny import MODEL, tiny_config

from rllib_vlm.errors import ModelError, PlacementError

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def algorithm(ray_cluster: None) -> Iterator[Any]:
    """One for all tests here, since engines take long to start: two engines, two runners, adapters."""
    pytest.importorskip("peft")
    algorithm = (
        tiny_config("ppo", observation="vision")
        .generation(backend="vllm", engine={"count": 2, "num_cpus": 0.5, "max_model_len": 512})
        .rl_module(model_config={**MODEL, "lora": {"rank": 2, "target": ["q_proj"]}})
        .env_runners(num_env_runners=2, num_cpus_per_env_runner=0.25)
        .training(groups_per_update=8)
        .build_algo()
    )
    yield algorithm
    algorithm.stop()


def engine_processes() -> list[psutil.Process]:
    """Of this test's own cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # or a zombie, which has no command line any more
            if " ".join(process.cmdline()).startswith("ray::VLLMEngine"):
                found.append(process)
    return found


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


def test_engines_end_with_their_algorithm(algorithm):
    algorithm.stop()
    end = time.monotonic() + 30
    while engine_processes():
        assert time.monotonic() < end, "engines outlive their algorithm"
        time.sleep(0.2)


def test_engines_that_fit_nowhere_are_told_before_anything_starts():
    config = tiny_config("ppo", observation="vision").generation(backend="vllm", engine={"num_cpus": 99})
    with pytest.raises(PlacementError, match="99 CPU"):
        config.build_algo()
    assert not engine_processes()


# KILL_ALL=1 kills an env runner and the learner as well, each of which takes a minute more.
VICTIMS = (
    "ray::VLLMEngine",
    *((WORKERS["env runner"], WORKERS["learner"]) if os.environ.get("KILL_ALL") else ()),
)
UPDATES, EPISODES_PER_UPDATE = 2 + len(VICTIMS), 8
RUN = f"""
engines:
  run: VLMPPO
  env: frozen_lake
  include: [models/tiny]
  stop: {{training_iteration: {UPDATES}}}
  checkpoint_config: {{checkpoint_frequency: 1, num_to_keep: 1, checkpoint_at_end: true}}
  max_failures: 1
  config:
    environment: {{env_config: {{observation: vision, size: 3, max_steps: 4, image_size: 56}}}}
    env_runners: {{num_env_runners: 1, num_envs_per_env_runner: 4, num_cpus_per_env_runner: 0.25}}
    learners: {{num_learners: 1, num_cpus_per_learner: 0.25, torch_threads: 1}}
    simulation: {{max_turns: 4}}
    prompting: {{template: bare}}
    generation: {{backend: vllm, max_new_tokens: 5, temperature: 0.7, engine: {{num_cpus: 0.25}}}}
    training: {{groups_per_update: {EPISODES_PER_UPDATE}, total_updates: {UPDATES}, lr: 1.0e-3, row_tokens: 512}}
    evaluation: {{evaluation_duration: 4, evaluation_at: [final]}}
    callbacks: [report]
"""


def test_a_run_under_tune_goes_on_whoever_is_killed(tmp_path: Path):
    (tmp_path / "x.yaml").write_text(RUN)
    run = Run(tmp_path, "--name", "run")
    for title in VICTIMS:
        run.get_further()
        run.lose(title)
    out = run.end()
    assert run.process.returncode == 0, out
    records = [record for _, record in sorted(results(tmp_path / "run").items())]
    assert [number(r, "num_updates") for r in records] == list(range(1, UPDATES + 1))
    for record in records:
        assert number(record, "env_runners/num_episodes") == EPISODES_PER_UPDATE
        assert number(record, "env_runners/num_lost_turns") == 0
        assert number(record, "env_runners/engine_probe_gap") < 1e-4
        assert number(record, "learners/default_policy/sampler_gap") < 1e-4
        assert np.isfinite(number(record, "learners/default_policy/policy_loss"))
    assert sum(number(record, "env_runners/num_engine_restarts") for record in records) == 1
    assert records[-1]["evaluation"]["num_episodes"] == 4
