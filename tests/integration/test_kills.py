"""Processes that are killed outright, at moments nobody chose: the run ends with the numbers of one left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

UPDATES = 30
RUN = f"""
killed:
  run: VLMPPO
  env: frozen_lake
  checkpoint_config: {{checkpoint_frequency: 1, num_to_keep: 2, checkpoint_at_end: true}}
  stop: {{training_iteration: 1000}}
  config:
    environment: {{env_config: {{observation: text, size: 3, max_steps: 4}}}}
    env_runners: {{num_env_runners: 1, num_envs_per_env_runner: 4, num_cpus_per_env_runner: 0.25}}
    learners: {{torch_threads: 1}}
    simulation: {{max_turns: 4, curriculum: {{start: 0.0, end: 1.0, updates: 5}}}}
    prompting: {{template: bare, observation: text, invalid_penalty: 0.1}}
    generation: {{max_new_tokens: 5}}
    rl_module:
      model_config: {{size: tiny, hidden_size: 32, num_layers: 1, vision_hidden: 32, vision_depth: 1,
                      vocab_size: 768, tokenizer_words: [left, right, up, down]}}
    warm_start: {{updates: 2, episodes_per_update: 6, minibatch_size: 8, lr: 5.0e-3}}
    training: {{lr: 1.0e-3, lr_schedule: linear, groups_per_update: 8, total_updates: {UPDATES}, kl_coeff: 0.05}}
    evaluation: {{evaluation_duration: 4, evaluation_at: [final]}}
    callbacks: [report, guard]
"""
SAME = (
    "num_updates", "curriculum_level", "learners/default_policy/policy_loss", "learners/default_policy/lr",
    "learners/default_policy/value_loss", "learners/default_policy/kl_to_reference", "env_runners/success_rate",
    "env_runners/episode_return_mean", "env_runners/num_generated_tokens", "env_runners/num_env_steps_sampled_lifetime",
)  # fmt: skip


class Run:
    """`rllib train` in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [str(Path(sys.executable).with_name("rllib")), "train", "file", str(folder / "x.yaml"),
             "--storage", str(folder), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=folder,
        )  # fmt: skip
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> str:
        self.process.wait(300)
        self._reader.join(10)
        return "".join(self.lines)


def results(folder: Path) -> dict[int, dict]:
    """The last record of every iteration: one that was played again after a kill stands there twice."""
    found = {}
    for file in folder.glob("*/result.json"):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            found[record["training_iteration"]] = record
    return found


def number(record: dict, path: str) -> float:
    value = record
    for key in path.split("/"):
        value = value.get(key, {})
    return value if isinstance(value, int | float) else float("nan")


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    folder = tmp_path_factory.mktemp("alone")
    (folder / "x.yaml").write_text(RUN)
    run = Run(folder, "--name", "run")
    out = run.end()
    assert run.process.returncode == 0, out
    return results(folder / "run")


@pytest.mark.timeout(400)  # three starts of Ray
def test_a_driver_that_is_killed_again_and_again_ends_with_the_same_numbers(left_alone, tmp_path: Path):
    folder = tmp_path / "a b||ü"  # no path is too odd to be resumed
    folder.mkdir()
    (folder / "x.yaml").write_text(RUN)
    moments = random.Random(0)
    run = Run(folder, "--name", "run")
    kills = 0
    while kills < 2:
        before = max(results(folder / "run"), default=0)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and run.process.poll() is None:
            if max(results(folder / "run"), default=0) > before:
                break
            time.sleep(0.2)
        time.sleep(moments.uniform(0.0, 1.0))
        if run.process.poll() is not None:
            break
        run.kill()
        kills += 1
        run = Run(folder, "--resume", str(folder / "run"))
    out = run.end()
    assert run.process.returncode == 0, out
    assert kills == 2
    found = results(folder / "run")
    assert found.keys() == left_alone.keys()
    for iteration, record in left_alone.items():
        for path in SAME:
            assert number(found[iteration], path) == pytest.approx(
                number(record, path), rel=1e-6, nan_ok=True
            ), f"{path} of iteration {iteration}"
    assert (
        found[max(found)]["evaluation"]["num_successes"]
        == left_alone[max(left_alone)]["evaluation"]["num_successes"]
    )
