"""Processes that are killed outright, at moments nobody chose: the run ends with the numbers of one left alone.

KILL_SEED chooses the moments, and is printed. KILL_ROUNDS=2 kills each kind of process twice, and so on: a round is
five kills at random moments, and takes one start of Ray for the driver's.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest
from killable import WORKERS, Run, number, results

SEED = int(os.environ.get("KILL_SEED", "0"))
ROUNDS = int(os.environ.get("KILL_ROUNDS", "1"))
UPDATES = 8 * ROUNDS
RUN = f"""
killed:
  run: VLMPPO
  env: frozen_lake
  checkpoint_config: {{checkpoint_frequency: 1, num_to_keep: 2, checkpoint_at_end: true}}
  stop: {{training_iteration: 1000}}
  max_failures: -1
  config:
    environment: {{env_config: {{observation: text, size: 3, max_steps: 4}}}}
    env_runners: {{num_env_runners: 1, num_envs_per_env_runner: 4, num_cpus_per_env_runner: 0.25}}
    learners: {{num_learners: 1, num_cpus_per_learner: 0.25, torch_threads: 1}}
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


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    folder = tmp_path_factory.mktemp("alone")
    (folder / "x.yaml").write_text(RUN)
    run = Run(folder, "--name", "run")
    out = run.end()
    assert run.process.returncode == 0, out
    return results(folder / "run")


@pytest.mark.long
@pytest.mark.timeout(300 + 600 * ROUNDS)  # every round starts Ray anew and four workers again
def test_whoever_is_killed_the_run_ends_with_the_same_numbers(left_alone, tmp_path: Path):
    folder = tmp_path / "a b||ü"  # no path is too odd to be resumed
    folder.mkdir()
    (folder / "x.yaml").write_text(RUN)
    chance = random.Random(SEED)
    plan = ["driver", *WORKERS] * ROUNDS
    chance.shuffle(plan)
    print(f"KILL_SEED={SEED}: {plan}")
    run = Run(folder, "--name", "run")
    for victim in plan:
        run.get_further()
        time.sleep(chance.uniform(0.0, 0.5))
        if victim == "driver":
            run.kill()
            run = Run(folder, "--resume", str(folder / "run"))
        else:
            run.lose(WORKERS[victim])
    out = run.end()
    assert run.process.returncode == 0, out
    found = results(folder / "run")
    assert found.keys() == left_alone.keys()
    for iteration, record in left_alone.items():
        for path in SAME:
            assert number(found[iteration], path) == pytest.approx(
                number(record, path), rel=1e-6, nan_ok=True
            ), f"{path} of iteration {iteration}"
    last = max(left_alone)
    assert found[last]["evaluation"]["num_successes"] == left_alone[last]["evaluation"]["num_successes"]
    (trial,) = (folder / "run").glob("*/")
    kept = sorted(path.name for path in trial.glob("checkpoint_*"))
    assert len(kept) == 2, f"num_to_keep holds across kills: {kept}"
    assert not list(trial.glob(".*.tmp"))
    assert json.loads((trial / "results.json").read_text())["final"]["episodes"] == 4


@pytest.mark.long
@pytest.mark.timeout(300 + 100 * ROUNDS)
def test_simulators_that_are_killed_are_replaced_and_every_episode_is_counted(tmp_path: Path):
    updates = 24  # so that the run is still going when the kills come
    text = RUN.replace("simulation: {", "simulation: {process: subprocess, ")
    text = text.replace(f"total_updates: {UPDATES}", f"total_updates: {updates}")
    (tmp_path / "x.yaml").write_text(text)
    chance = random.Random(SEED)
    print(f"KILL_SEED={SEED}")
    run = Run(tmp_path, "--name", "run")
    for _ in range(ROUNDS):
        run.get_further()
        time.sleep(chance.uniform(0.0, 0.5))
        run.lose(WORKERS["env runner"], child=True)
    out = run.end()
    assert run.process.returncode == 0, out
    found = results(tmp_path / "run")
    assert sorted(found) == list(range(1, updates + 3))
    assert [number(r, "num_updates") for _, r in sorted(found.items())] == [0, 0, *range(1, updates + 1)]
    sampled = [r for r in found.values() if r["num_updates"]]
    assert {number(r, "env_runners/num_episodes") for r in sampled} == {8}
