"""Our key figures in the Ray dashboard: each iteration's results as gauges of `ray.util.metrics`.

Ray exports them to Prometheus under `ray_rllib_vlm_<name>`, and the dashboard's metrics page plots them. TensorBoard,
`result.json` and the loggers get the same figures from Tune, under the names of docs/metrics.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.utils.annotations import override
from ray.util.metrics import Gauge

_LEARNER = "learners/default_policy/"

# Gauge -> where the figure stands in a result, and what it is.
GAUGES: dict[str, tuple[str, str]] = {
    "success_rate": ("env_runners/success_rate", "share of training episodes that succeeded"),
    "episode_return_mean": ("env_runners/episode_return_mean", "sum of rewards of an episode"),
    "episode_turns_mean": ("env_runners/episode_len_mean", "turns of an episode"),
    "sel": ("env_runners/sim/sel", "success weighted by episode length"),
    "spl": ("env_runners/sim/spl", "success weighted by path length"),
    "parse_failure_rate": ("env_runners/parse_failure_rate", "share of answers that did not parse"),
    "response_length": ("env_runners/response_length", "tokens of an answer"),
    "sampling_tokens_per_s": ("env_runners/tokens_per_s", "generated tokens per second of sampling"),
    "policy_lag": ("env_runners/policy_lag", "weight versions between sampling and the newest weights"),
    "simulator_crashes": ("env_runners/num_simulator_crashes", "simulators that raised or died"),
    "simulator_timeouts": ("env_runners/num_simulator_timeouts", "simulators that missed a deadline"),
    "imitation_loss": (f"{_LEARNER}imitation_loss", "negative log-likelihood of the expert, nats per token"),
    "policy_loss": (f"{_LEARNER}policy_loss", "clipped policy loss"),
    "value_loss": (f"{_LEARNER}value_loss", "clipped value loss"),
    "approx_kl": (f"{_LEARNER}approx_kl", "KL of the sampling against the current policy, nats per token"),
    "clip_fraction": (f"{_LEARNER}clip_fraction", "share of tokens whose ratio is clipped"),
    "ratio_max": (f"{_LEARNER}ratio_max", "largest importance ratio"),
    "entropy": (f"{_LEARNER}entropy", "nats per token"),
    "explained_variance": (f"{_LEARNER}explained_variance", "of the returns, by the critic"),
    "grad_norm": (f"{_LEARNER}grad_norm", "global norm before clipping"),
    "skipped_steps": (
        f"{_LEARNER}num_skipped_steps",
        "optimizer steps whose loss or gradient was not finite",
    ),
    "learning_rate": (f"{_LEARNER}lr", "of the policy"),
    "learning_tokens_per_s": (f"{_LEARNER}tokens_per_s", "tokens per second of optimizer steps"),
    "sample_s": ("timers/sample", "seconds of sampling in an iteration"),
    "learn_s": ("timers/learn", "seconds of learning in an iteration"),
    "sync_s": ("timers/sync", "seconds of sending weights in an iteration"),
    "evaluation_success_rate": ("evaluation/success_rate", "share of held-out episodes that succeeded"),
    "updates": ("num_updates", "updates of reinforcement learning so far"),
}


class Metrics(RLlibCallback):
    """Mirrors each iteration's key figures into Ray's own metrics, tagged with the trial."""

    def __init__(self) -> None:
        super().__init__()
        self._gauges: dict[str, Gauge] = {}
        self._tags: dict[str, str] = {}

    @override(RLlibCallback)
    def on_algorithm_init(self, *, algorithm: Any, metrics_logger: Any = None, **kwargs: Any) -> None:
        self._tags = {"algorithm": type(algorithm).__name__, "trial": str(algorithm.trial_id)}

    @override(RLlibCallback)
    def on_train_result(
        self, *, algorithm: Any, metrics_logger: Any = None, result: dict[str, Any], **kwargs: Any
    ) -> None:
        for name, value in key_figures(result).items():
            if name not in self._gauges:
                description = GAUGES[name][1]
                self._gauges[name] = Gauge(f"rllib_vlm_{name}", description, tuple(self._tags))
            self._gauges[name].set(value, self._tags)


def key_figures(result: Mapping[str, Any]) -> dict[str, float]:
    """The figures of `GAUGES` that this result has; what is missing or not finite is left out."""
    found: dict[str, float] = {}
    for name, (path, _) in GAUGES.items():
        value = look_up(result, path)
        if isinstance(value, Real) and math.isfinite(value):
            found[name] = float(value)
    return found


def look_up(result: Mapping[str, Any], path: str) -> Any:
    """`look_up(result, "env_runners/success_rate")`, or None where the result has no such entry."""
    value: Any = result
    for key in path.split("/"):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value
