"""Experiment files through Tune: grids, failure and resumption, the files a run leaves behind."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import MODEL

from rllib_vlm.algorithms.manifest import damage
from rllib_vlm.config import runner
from rllib_vlm.config.checkpoints import find_checkpoint
from rllib_vlm.config.evaluation import prepare
from rllib_vlm.config.loader import load
from rllib_vlm.config.lock import held
from rllib_vlm.config.resuming import Changes
from rllib_vlm.errors import ConfigErrors, RLlibVLMError

# The smallest real algorithm there is; everything here holds for any.
SMALL = """
    env_runners: {num_env_runners: 0}
    training: {train_batch_size_per_learner: 32, minibatch_size: 32, num_epochs: 1}
"""


pytestmark = pytest.mark.usefixtures("ray_cluster")


def write(folder: Path, text: str, name: str = "x.yaml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_a_grid_runs_in_folders_of_safe_names_and_stops_where_it_should(tmp_path: Path, capsys):
    text = f"""
strange / name, (50%):
  run: PPO
  env: CartPole-v1
  stop: {{training_iteration: 2}}
  config:
    rl_module: {{model_config: {{fcnet_hiddens: {{grid_search: [[4], [8]]}}}}}}
{SMALL}"""
    (experiment,) = load(write(tmp_path, text))
    outcome = runner.run(experiment, storage=tmp_path / "results")
    assert not outcome.failures
    assert not outcome.interrupted
    assert outcome.folder.parent == tmp_path / "results"
    assert outcome.folder.name.startswith("strange_name_50_")
    trials = [d for d in outcome.folder.iterdir() if d.is_dir()]
    assert len(trials) == 2
    for path in outcome.folder.rglob("*"):
        assert re.fullmatch(r"[A-Za-z0-9._-]+", path.name), path
    widths = set()
    for trial in trials:
        results = [json.loads(line) for line in (trial / "result.json").read_text().splitlines()]
        assert [r["training_iteration"] for r in results] == [1, 2]
        widths.add(tuple(results[0]["config"]["_model_config"]["fcnet_hiddens"]))
        assert list(trial.glob("events.out.tfevents.*"))
    assert widths == {(4,), (8,)}
    printed = capsys.readouterr().out
    assert f"run folder: {outcome.folder}" in printed
    assert re.search(r"^trial +iter +time", printed, re.MULTILINE)


FAILS_ONCE = """
import os
from ray.rllib.algorithms.ppo import PPOConfig

FLAG = {flag!r}

def on_train_result(*, algorithm, result, **kwargs):
    with open(os.path.join(algorithm.logdir, "results.json"), "w") as file:
        file.write('{{"iteration": %d}}' % algorithm.iteration)
    if algorithm.iteration == 2 and not os.path.exists(FLAG):
        open(FLAG, "w").close()
        raise RuntimeError("the second iteration fails once")

config = (
    PPOConfig()
    .environment("CartPole-v1")
    .env_runners(num_env_runners=0)
    .training(train_batch_size_per_learner=32, minibatch_size=32, num_epochs=1)
    .callbacks(on_train_result=on_train_result)
)
stop = {{"training_iteration": 3}}
"""


def test_a_failed_run_says_why_is_resumed_and_evaluated(tmp_path: Path):
    file = write(tmp_path, FAILS_ONCE.format(flag=str(tmp_path / "flag")), "fails.py")
    (experiment,) = load(file)
    experiment.checkpoints.checkpoint_frequency = 1
    outcome = runner.run(experiment, storage=tmp_path, name="run")
    assert len(outcome.failures) == 1
    assert "the second iteration fails once" in outcome.failures[0]

    with pytest.raises(RLlibVLMError, match="holds a run already"):
        runner.run(experiment, storage=tmp_path, name="run")

    (again,) = load(file)
    outcome = runner.run(again, resume=tmp_path / "run")
    assert not outcome.failures
    (results,) = outcome.results_files
    assert json.loads(results.read_text()) == {"iteration": 3}, (
        "what is written last joins the trial's folder"
    )
    lines = (results.parent / "result.json").read_text().splitlines()
    assert [json.loads(line)["training_iteration"] for line in lines] == [1, 2, 3]

    with pytest.raises(
        RLlibVLMError, match=r"every trial of this run is finished \(stop training_iteration=3\).*--stop"
    ):
        runner.run(again, resume=tmp_path / "run")
    with pytest.raises(RLlibVLMError, match="not both"):
        runner.run(again, resume=tmp_path / "run", overwrite=True)
    with pytest.raises(RLlibVLMError, match="every trial of this run is finished"):
        runner.run(again, resume=tmp_path / "run", changes=Changes(stop={"training_iteration": 3}))
    longer = runner.run(again, resume=tmp_path / "run", changes=Changes(stop={"training_iteration": 5}))
    assert not longer.failures
    lines = (results.parent / "result.json").read_text().splitlines()
    assert [json.loads(line)["training_iteration"] for line in lines] == [1, 2, 3, 4, 5]
    with pytest.raises(RLlibVLMError, match="every trial of this run is finished"):
        runner.run(again, resume=tmp_path / "run")

    checkpoint = find_checkpoint(tmp_path / "run")
    assert checkpoint.parent == results.parent
    assert find_checkpoint(results.parent) == checkpoint == find_checkpoint(checkpoint)
    metrics = prepare(checkpoint, episodes=3, overrides=["evaluation.evaluation_num_env_runners=0"]).run()
    assert metrics["env_runners/num_episodes"] == 3
    json.dumps(metrics)
    with pytest.raises(ConfigErrors, match="Did you mean 'evaluation_interval'"):
        prepare(checkpoint, overrides=["evaluation.evaluation_intervall=0"])
    with pytest.raises(RLlibVLMError, match="no splits"):
        prepare(checkpoint, split="train")


FILLS_THE_DISK = """
import os
from pathlib import Path

from tiny import tiny_config

from rllib_vlm.callbacks.report import Report
from rllib_vlm.guard.collapse_guard import CollapseGuard

REST = {rest!r}

def on_train_result(*, algorithm, result, **kwargs):
    if algorithm.iteration == 2:
        with open(REST, "wb", buffering=0) as file:
            file.write(bytes(64 << 20))  # as much of it as there is room for
    if algorithm.iteration == 4:
        os.unlink(REST)

config = tiny_config("grpo").training(total_updates=5)
config.evaluation(evaluation_at=("start", "final"), evaluation_interval=2)
config.callbacks([Report, CollapseGuard], on_train_result=on_train_result)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_ends_the_write_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", disk], check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        (experiment,) = load(write(tmp_path, FILLS_THE_DISK.format(rest=str(disk / "rest")), "fills.py"))
        experiment.checkpoints.checkpoint_frequency = 1
        experiment.checkpoints.num_to_keep = 3
        outcome = runner.run(experiment, storage=disk, name="run")
        assert not outcome.failures and not outcome.interrupted
        (trial,) = (d for d in outcome.folder.iterdir() if d.is_dir())
        kept = sorted(trial.glob("checkpoint_*"))
        assert not [d for d in kept if damage(d)]
        assert not list(trial.glob(".*.tmp"))
        made_after = [json.loads((d / "policy.json").read_text())["training_iteration"] for d in kept]
        assert made_after == [1, 4, 5]
        lines = [json.loads(line) for line in (trial / "result.json").read_text().splitlines()]
        assert [line["training_iteration"] for line in lines][-1] == 5
        assert json.loads((trial / "results.json").read_text())["final"]["episodes"] == 5
        assert "a line of result.json could not be written" in caplog.text and "No space" in caplog.text
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_trackers_named_in_the_file_get_the_metrics_and_the_settings_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mlflow = pytest.importorskip("mlflow", reason="pip install 'rllib_vlm[trackers]'")
    pytest.importorskip("wandb", reason="pip install 'rllib_vlm[trackers]'")
    # MLflow's plain files need this word since 3.17; its databases need more than mlflow-skinny.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    uri = (tmp_path / "mlruns").as_uri()
    config = {
        "environment": {"env_config": {"observation": "text", "size": 3, "max_steps": 4}},
        "env_runners": {"num_env_runners": 0, "num_envs_per_env_runner": 4},
        "learners": {"torch_threads": 1},
        "simulation": {"max_turns": 4},
        "prompting": {"template": "bare", "observation": "text", "invalid_penalty": 0.1},
        "generation": {"max_new_tokens": 5},
        "rl_module": {"model_config": MODEL},
        "training": {"groups_per_update": 2, "group_size": 4},
        "warm_start": {"updates": 0},
        "evaluation": {"evaluation_at": []},
    }
    tracked = {
        "run": "VLMGRPO",
        "env": "frozen_lake",
        "stop": {"training_iteration": 2},
        "loggers": [
            {"mlflow": {"tracking_uri": uri, "experiment_name": "lake"}},
            {"wandb": {"project": "lake", "mode": "offline"}},
        ],
        "config": config,
    }
    (experiment,) = load(write(tmp_path, yaml.safe_dump({"tracked": tracked})))
    outcome = runner.run(experiment, storage=tmp_path / "results")
    assert not outcome.failures
    (file,) = outcome.folder.glob("*/result.json")
    last = json.loads(file.read_text().splitlines()[-1])

    client = mlflow.tracking.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("lake").experiment_id])
    assert run.data.metrics["training_iteration"] == 2
    assert run.data.metrics["env_runners/success_rate"] == last["env_runners"]["success_rate"]
    history = client.get_metric_history(run.info.run_id, "learners/default_policy/grad_norm")
    assert [point.step for point in history] == [1, 2]
    assert run.data.params["groups_per_update"] == "2"

    # Weights & Biases keeps its run beside the trial.
    (kept,) = outcome.folder.glob("**/offline-run-*/*.wandb")
    assert b"env_runners/success_rate" in kept.read_bytes()


def test_a_trial_no_machine_can_hold_is_refused(tmp_path: Path):
    text = "big: {run: PPO, env: CartPole-v1, config: {env_runners: {num_env_runners: 64}}}"
    (experiment,) = load(write(tmp_path, text))
    with pytest.raises(RLlibVLMError, match=r"one trial needs 65 CPU where there are 4"):
        runner.run(experiment, storage=tmp_path)
    assert not list(tmp_path.glob("big*"))


def test_a_run_is_resumed_by_the_file_that_started_it_only(tmp_path: Path):
    text = f"""
a:
  run: PPO
  env: CartPole-v1
  stop: {{training_iteration: 1}}
  config:
    environment: {{env_config: {{}}}}
{SMALL}"""
    (experiment,) = load(write(tmp_path, text))
    folder = runner.run(experiment, storage=tmp_path, name="run").folder
    (other,) = load(
        write(tmp_path, text.replace("env_config: {}", "env_config: {sutton_barto_reward: true}"))
    )
    with pytest.raises(
        RLlibVLMError, match=r"only one of them has the settings env_config/sutton_barto_reward\."
    ):
        runner.run(other, resume=folder)
    (other,) = load(write(tmp_path, "a: {run: IMPALA, env: CartPole-v1}"))
    with pytest.raises(RLlibVLMError, match="identifier 'IMPALA' but expected 'PPO'. Give --resume the file"):
        runner.run(other, resume=folder)
    with held(folder), pytest.raises(RLlibVLMError, match="another process trains in it"):
        runner.run(experiment, storage=tmp_path, name="run", overwrite=True)
    (folder / "tuner.pkl").write_bytes(b"")
    with pytest.raises(RLlibVLMError, match=r"its tuner\.pkl cannot be read \(EOFError"):
        runner.run(experiment, resume=folder)
    assert find_checkpoint(folder).is_dir()


def test_resume_needs_a_run(tmp_path: Path):
    (experiment,) = load(
        write(tmp_path, "a: {run: PPO, env: CartPole-v1, config: {env_runners: {num_env_runners: 0}}}")
    )
    with pytest.raises(RLlibVLMError, match="holds no run to resume"):
        runner.run(experiment, resume=tmp_path)


@pytest.mark.parametrize(
    ("name", "safe"), [("a b/c", "a_b_c"), ("..", "experiment"), ("spoc", "spoc"), ("", "experiment")]
)
def test_safe_names(name: str, safe: str):
    assert runner.safe_name(name) == safe


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_before_the_first_result_is_an_interrupt(sent: signal.Signals, tmp_path: Path):
    code = "import sys; from rllib_vlm.cli import main; main(sys.argv[1:])"
    arguments = ["train", "file", "tuned_examples/frozen_lake_grpo.yaml", "--storage", str(tmp_path)]
    with (
        (tmp_path / "stderr").open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments, "--name", "stopped"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("run folder:"):
                process.send_signal(sent)
                break
        said = process.stdout.read()
    assert process.returncode == 130, (tmp_path / "stderr").read_text()
    assert f"--resume {tmp_path / 'stopped'}" in said
