"""Experiment trackers by name, offline: Ray's own logger callbacks with our algorithms and metric names."""

import pytest
from ray import tune
from tiny import tiny_config

from rllib_vlm.algorithms.grpo import VLMGRPO
from rllib_vlm.config.plugins import make_loggers

pytestmark = pytest.mark.usefixtures("local_ray")


def run(tmp_path, callbacks) -> tune.ResultGrid:
    """Two iterations of a tiny agent under Tune."""
    tuner = tune.Tuner(
        VLMGRPO,
        param_space=tiny_config("grpo"),
        run_config=tune.RunConfig(
            name="run",
            storage_path=str(tmp_path),
            stop={"training_iteration": 2},
            callbacks=callbacks,
            verbose=0,
        ),
    )
    results = tuner.fit()
    assert not results.errors
    return results


def test_mlflow_and_wandb_get_the_metrics_and_the_settings_offline(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="pip install 'rllib_vlm[trackers]'")
    pytest.importorskip("wandb", reason="pip install 'rllib_vlm[trackers]'")
    # MLflow's plain files need this word since 3.17; its databases need more than mlflow-skinny.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    uri = (tmp_path / "mlruns").as_uri()
    callbacks = make_loggers(
        [
            {"mlflow": {"tracking_uri": uri, "experiment_name": "lake"}},
            {"wandb": {"project": "lake", "dir": str(tmp_path), "mode": "offline"}},
        ]
    )
    result = run(tmp_path, callbacks)[0]

    client = mlflow.tracking.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("lake")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.metrics["env_runners/success_rate"] == result.metrics["env_runners"]["success_rate"]
    history = client.get_metric_history(found.info.run_id, "learners/default_policy/grad_norm")
    assert [point.step for point in history] == [1, 2]
    assert found.data.params["groups_per_update"] == "2"

    (file,) = tmp_path.glob("**/offline-run-*/*.wandb")
    assert b"env_runners/success_rate" in file.read_bytes()
