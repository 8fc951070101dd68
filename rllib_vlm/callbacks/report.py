"""`results.json` and `success.png`: what a run reached, written by the run itself into its own folder."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import psutil
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.utils.annotations import override

from rllib_vlm.callbacks.curve import Curve
from rllib_vlm.callbacks.statistics import newcombe_interval, paired_newcombe_interval
from rllib_vlm.core.columns import GROUP, SUCCESS
from rllib_vlm.diagnosis.records import RESULT_FILE, json_lines
from rllib_vlm.errors import RLlibVLMError
from rllib_vlm.files import or_go_on, write_json

RESULTS_FILE = "results.json"
CURVE_FILE = "success.png"
_OUTCOMES = "outcomes"  # of an evaluation record: success by task; of an env runner: those not yet fetched
_DETAILS = (
    "num_successes",
    "num_updates",
    "episode_return_mean",
    "episode_len_mean",
    "episode_actions_mean",
    "sim",
    "wall_s",
)
_MEMORY_EVERY_S = 2.0
_GIB = 1024**3


class Report(RLlibCallback):
    """Writes `results.json` after each of the run's evaluations, and draws `success.png`.

    The picture of a resumed run begins with what `result.json` of its folder has of the iterations before.

    Fields: `warm_start` and `final`, each `{success, episodes, interval}` (Wilson, 95%), as far as
    the run has come; `difference` `{value, interval, method}` of the two (Newcombe, 95%), for paired
    outcomes where both evaluations played the same tasks, which they do unless a simulator failed for
    good; `seeds`; `wall_s` and `peak_rss_gb` of this process and all its children and the run's Ray
    workers, sampled every two seconds, since the run began or was last resumed; `details`: the
    simulator's own metrics and more of each evaluation.
    """

    def __init__(self) -> None:
        super().__init__()
        self._began = time.monotonic()
        self._memory: PeakMemory | None = None
        self.curve = Curve()
        self._earlier: float | None = None  # minutes of the iterations before this process's first
        self._drawn = True

    @override(RLlibCallback)
    def on_sample_end(
        self, *, env_runner: Any = None, metrics_logger: Any = None, samples: Any, **kwargs: Any
    ) -> None:
        outcomes = {
            str(episode.custom_data[GROUP]): bool(episode.custom_data.get(SUCCESS, False))
            for episode in samples
            if str(episode.custom_data.get(GROUP, "")).startswith("heldout/")
        }
        if outcomes:
            vars(env_runner).setdefault(_OUTCOMES, {}).update(outcomes)

    @override(RLlibCallback)
    def on_algorithm_init(self, *, algorithm: Any, metrics_logger: Any = None, **kwargs: Any) -> None:
        self._began = time.monotonic()
        self._memory = PeakMemory()

    @override(RLlibCallback)
    def on_evaluate_end(
        self, *, algorithm: Any, metrics_logger: Any = None, evaluation_metrics: Any = None, **kwargs: Any
    ) -> None:
        evaluations = algorithm.run_state.evaluations
        outcomes = _fetch_outcomes(algorithm.eval_env_runner_group or algorithm.env_runner_group)
        for name, evaluation in list(evaluations.items()):
            if evaluation is evaluation_metrics:  # a copy: what Tune is told need not list every episode
                evaluations[name] = {**evaluation, _OUTCOMES: outcomes}
        record = results(evaluations)
        record["seeds"] = [algorithm.config.seed]
        record["wall_s"] = round(time.monotonic() - self._began, 1)
        if self._memory is not None:
            record["peak_rss_gb"] = round(self._memory.peak_bytes / _GIB, 2)
        with or_go_on(RESULTS_FILE):
            write_json(algorithm.lasting_folder / RESULTS_FILE, record)
        self._go_on(algorithm, algorithm.iteration + 1)
        self.curve.add_evaluation(self._minutes(), evaluation_metrics or {})
        self._drawn = False

    @override(RLlibCallback)
    def on_train_result(
        self, *, algorithm: Any, metrics_logger: Any = None, result: dict[str, Any], **kwargs: Any
    ) -> None:
        self._go_on(algorithm, int(result["training_iteration"]))
        self.curve.add_training(self._minutes(), result)
        if not self._drawn:
            with or_go_on(CURVE_FILE):
                self.curve.draw(algorithm.lasting_folder / CURVE_FILE)
            self._drawn = True

    def _go_on(self, algorithm: Any, iteration: int) -> None:
        """Once, before anything is added: the curve of the iterations before this one."""
        if self._earlier is not None:
            return
        self._earlier = 0.0
        file = algorithm.lasting_folder / RESULT_FILE
        if file.is_file():
            with contextlib.suppress(RLlibVLMError):  # not to be read: a picture is no reason to end
                self._earlier = self.curve.add_records(_before(iteration, json_lines(file, [])))

    def _minutes(self) -> float:
        return (self._earlier or 0.0) + (time.monotonic() - self._began) / 60.0


def results(evaluations: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The outcome part of `results.json` from evaluation records by milestone."""
    named = {"warm_start": evaluations.get("warm_start_end"), "final": evaluations.get("final")}
    out: dict[str, Any] = {
        name: {
            "success": record["success_rate"],
            "episodes": record["num_episodes"],
            "interval": [record["interval_low"], record["interval_high"]],
        }
        for name, record in named.items()
        if record is not None
    }
    if (before := named["warm_start"]) is not None and (after := named["final"]) is not None:
        paired = _paired_counts(after.get(_OUTCOMES), before.get(_OUTCOMES))
        if paired is not None:
            interval = paired_newcombe_interval(*paired)
        else:
            interval = newcombe_interval(
                after["num_successes"], after["num_episodes"], before["num_successes"], before["num_episodes"]
            )
        out["difference"] = {
            "value": after["success_rate"] - before["success_rate"],
            "interval": list(interval),
            "method": f"Newcombe, {'independent' if paired is None else 'paired'}",
        }
    if evaluations:
        out["details"] = {
            name: {key: record[key] for key in _DETAILS if key in record}
            for name, record in evaluations.items()
        }
    return out


def _before(iteration: int, records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of earlier iterations, in order; of those made twice, the last."""
    found: dict[int, dict[str, Any]] = {}
    for record in records:
        number = record.get("training_iteration")
        if isinstance(number, int) and number < iteration:
            found[number] = record
    return [found[number] for number in sorted(found)]


def _paired_counts(
    after: Mapping[str, bool] | None, before: Mapping[str, bool] | None
) -> tuple[int, int, int, int] | None:
    """Tasks that (both, only the later, only the earlier, neither) solved; None unless both played the same."""
    if not after or not before or after.keys() != before.keys():
        return None
    pairs = [(success, before[task]) for task, success in after.items()]
    return (
        pairs.count((True, True)),
        pairs.count((True, False)),
        pairs.count((False, True)),
        pairs.count((False, False)),
    )


def _fetch_outcomes(group: Any) -> dict[str, bool]:
    """Success of each held-out task the runners played since they were last asked."""

    def take(runner: Any) -> dict[str, bool]:
        taken: dict[str, bool] = vars(runner).pop(_OUTCOMES, {})
        return taken

    found: dict[str, bool] = {}
    for outcomes in group.foreach_env_runner(take):
        found.update(outcomes)
    return found


class PeakMemory:
    """The largest resident memory of this process, its Ray siblings and their children, while it lives.

    Ray's workers are children of the raylet, as this process is one of them: all processes below
    the same parent belong to the same run where the run started Ray itself.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        parent = psutil.Process().parent()
        self._roots = [psutil.Process()] if parent is None or "raylet" not in parent.name() else [parent]
        self._sample()
        threading.Thread(target=self._run, name="peak-memory", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(_MEMORY_EVERY_S)
            self._sample()

    def _sample(self) -> None:
        total = 0
        for root in self._roots:
            try:
                processes = [root, *root.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
            for process in processes:
                try:
                    memory = process.memory_info()
                except psutil.NoSuchProcess:
                    continue
                # Pages of the object store are shared by all workers; counting them once each would
                # multiply them.
                total += memory.rss - memory.shared
        self.peak_bytes = max(self.peak_bytes, total)
