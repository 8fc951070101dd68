"""Key figures on their way to the Ray dashboard."""

import time
import urllib.request

import pytest
from tiny import tiny_config

from rllib_vlm.callbacks import configured
from rllib_vlm.callbacks.metrics import GAUGES, key_figures, look_up


def test_only_finite_numbers_are_figures():
    result = {
        "env_runners": {"success_rate": 0.5, "policy_lag": float("nan"), "sim": {"spl": 0.25}},
        "learners": {"default_policy": {"entropy": 1.5, "lr": "high"}},
        "evaluation": None,
    }
    assert key_figures(result) == {"success_rate": 0.5, "spl": 0.25, "entropy": 1.5}
    assert look_up(result, "env_runners/sim/spl") == 0.25
    assert look_up(result, "evaluation/success_rate") is None


@pytest.mark.usefixtures("ray_cluster")
def test_a_real_result_has_the_figures_and_ray_exports_them():
    import ray

    config = tiny_config("ppo").callbacks(configured("metrics")).evaluation(evaluation_at=("start",))
    algorithm = config.build_algo()
    try:
        figures = key_figures(algorithm.train())
    finally:
        algorithm.stop()
    optional = {"sel", "imitation_loss"}  # of other simulators, and of the warm start
    assert set(GAUGES) - optional <= set(figures)
    port = ray.nodes()[0]["MetricsExportPort"]
    exported = _scraped(f"http://127.0.0.1:{port}/metrics", "ray_rllib_vlm_grad_norm")
    assert 'algorithm="VLMPPO"' in exported
    assert float(exported.split()[-1]) == pytest.approx(figures["grad_norm"])


def _scraped(url: str, name: str) -> str:
    """The exported line of that metric, once Ray's agent has got it."""
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        found = [line for line in lines if line.startswith(name)]
        if found:
            return found[0]
        time.sleep(0.5)
    raise AssertionError(f"{name} was not exported")
