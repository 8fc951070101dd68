"""The numbers an update reports, under stable names.

| name                 | what                                                                     |
|----------------------|--------------------------------------------------------------------------|
| `<term>_loss`        | each loss term, reduced as in the loss, without its coefficient          |
| `entropy`            | nats per token, mean                                                     |
| `approx_kl`          | k3 estimate of the sampling against the current policy, nats per token   |
| `clip_fraction`      | share of tokens whose ratio is clipped                                   |
| `ratio_max`          | largest importance ratio of the update                                   |
| `ratio_p99`          | factor of 1 that 99% of the ratios keep to; the largest micro-batch's    |
| `log_ratio_max`      | largest |log-ratio| of the first optimizer step, before any weight moved |
| `sampler_gap`        | mean |log-ratio| of sampler and learner, before any weight moved         |
| `kl_to_reference`    | estimate against the reference policy, nats per token                    |
| `explained_variance` | of the returns, by the critic                                            |
| `grad_norm`          | mean global norm before clipping; `grad_norm_max` the largest            |
| `num_skipped_steps`  | optimizer steps left out because loss or gradient was not finite         |
| `lr`                 | learning rate of the policy                                              |
| `tokens`             | positions read, padding left out, over all epochs                        |
| `tokens_per_s`       | of the time spent in optimizer steps                                     |
| `pad_fraction`       | share of the positions read that were padding                            |
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from rllib_vlm.batching.mismatch import Gap
from rllib_vlm.core.columns import VLMColumns
from rllib_vlm.core.loss_terms import LossSettings
from rllib_vlm.core.update_plan import UpdatePlan

# Metrics of loss terms that are not means over tokens.
_MAXIMA = ("ratio_max", "ratio_p99")
_MINIMA = ("ratio_min",)
_SUMS = ("tokens", "tokens_per_s")


def metric_reduction(name: str) -> str:
    """How the values of several learners become one: "mean", "max", "min" or "sum"."""
    if name in _SUMS:
        return "sum"
    if name in _MINIMA:
        return "min"
    return "max" if name in _MAXIMA or name.endswith("_max") else "mean"


class UpdateMetrics:
    """Collects over micro-batches and optimizer steps of one update."""

    def __init__(self) -> None:
        self.prepare_s = 0.0  # connector pipeline: rows, values, credit
        self.gap: Gap | None = None  # between sampler and learner, where it was measured before the update
        self.kl: float | None = None  # to the reference, where it stands in the reward
        self.tokens = 0
        self._positions = 0
        self._seconds = 0.0
        self._steps = 0
        self._skipped = 0
        self._guarded = 0
        self._norms: list[float] = []
        self._losses: dict[str, float] = defaultdict(float)
        self._sums: dict[str, float] = defaultdict(float)
        self._weights: dict[str, float] = defaultdict(float)
        self._extremes: dict[str, float] = {}
        self._log_ratio_max = 0.0
        self._returns = _Variance()
        self._residuals = _Variance()

    def count_tokens(self, tensors: Mapping[str, Tensor]) -> None:
        segments = tensors["segment_ids"]
        self.tokens += int((segments > 0).sum())
        self._positions += segments.numel()

    def add_term(self, name: str, loss: float, metrics: Mapping[str, Tensor], weight: float) -> None:
        """A micro-batch's reduced loss, and its metrics with the number of tokens they are means over."""
        self._losses[name] += loss
        if not weight:
            return
        for key, value in metrics.items():
            number = float(value)
            if key in _MAXIMA:
                self._extremes[key] = max(self._extremes.get(key, -math.inf), number)
            elif key in _MINIMA:
                self._extremes[key] = min(self._extremes.get(key, math.inf), number)
            elif key not in ("explained_variance", "perplexity"):  # neither is a mean over tokens
                self._mean(key, number, weight)

    @torch.no_grad()
    def add_columns(
        self, out: Mapping[str, Tensor], tensors: Mapping[str, Tensor], losses: LossSettings
    ) -> None:
        mask = tensors["loss_mask"]
        weight = float(mask.sum())
        if weight and VLMColumns.ENTROPY in out:
            self._mean("entropy", float(out[VLMColumns.ENTROPY][mask].mean()), weight)
        if weight and "policy" in losses.active and self._steps == 0:
            log_ratio = (out[VLMColumns.LOGPROBS] - tensors["old_logprobs"])[mask].abs()
            self._log_ratio_max = max(self._log_ratio_max, float(log_ratio.max()))
            self._mean("sampler_gap", float(log_ratio.mean()), weight)
        if "value" in losses.active:
            where = tensors["value_mask"]
            returns = tensors["returns"][where]
            self._returns.add(returns)
            self._residuals.add(returns - out[VLMColumns.VALUES][where])

    def add_gradient(self, norm: float, *, finite: bool = True) -> None:
        """A step's global norm; `finite` is whether its loss is, too."""
        if finite and math.isfinite(norm):
            self._norms.append(norm)
        else:
            self._skipped += 1

    def add_objections(self, objections: list[str]) -> None:
        """What the guard said against a step; nothing where it let it pass."""
        self._guarded += bool(objections)

    def end_step(self, seconds: float) -> None:
        self._seconds += seconds
        self._steps += 1

    def compute(self, plan: UpdatePlan, learners: int = 1) -> dict[str, float]:
        """The table of this module. Losses are shares of a whole that the mean over learners must give back."""
        steps = max(1, self._steps)
        active = plan.losses.active
        values = {f"{name}_loss": loss * learners / steps for name, loss in self._losses.items()}
        if "kl_loss" in values:
            values["kl_to_reference"] = values.pop("kl_loss")
        if self.kl is not None:
            values["kl_to_reference"] = self.kl
        values.pop("entropy_loss", None)  # its negative is `entropy`
        values |= {key: total / self._weights[key] for key, total in self._sums.items()}
        values |= self._extremes
        if "policy" in active:
            values["log_ratio_max"] = self._log_ratio_max
        if self.gap is not None:
            values |= self.gap.metrics()
        if "value" in active:
            values["explained_variance"] = self._residuals.explained(self._returns)
        values |= {
            "grad_norm": sum(self._norms) / len(self._norms) if self._norms else 0.0,
            "grad_norm_max": max(self._norms, default=0.0),
            "num_skipped_steps": float(self._skipped),
            "num_guarded_steps": float(self._guarded),
            "num_optimizer_steps": float(self._steps),
            "lr": plan.lr,
            "tokens": float(self.tokens),
            "tokens_per_s": self.tokens / self._seconds if self._seconds else 0.0,
            "pad_fraction": 1.0 - self.tokens / self._positions if self._positions else 0.0,
            "prepare_s": self.prepare_s,
        }
        return values

    def _mean(self, key: str, value: float, weight: float) -> None:
        self._sums[key] += value * weight
        self._weights[key] += weight


class _Variance:
    """Running population variance."""

    def __init__(self) -> None:
        self._n = 0
        self._sum = 0.0
        self._squares = 0.0

    def add(self, values: Tensor) -> None:
        values = values.double()
        self._n += values.numel()
        self._sum += float(values.sum())
        self._squares += float(values.square().sum())

    @property
    def variance(self) -> float:
        return max(0.0, self._squares / self._n - (self._sum / self._n) ** 2) if self._n else 0.0

    def explained(self, of: _Variance) -> float:
        """1 - residual variance / variance of the returns; 0 where the returns do not vary."""
        return 1.0 - self.variance / of.variance if of.variance > 1e-12 else 0.0
