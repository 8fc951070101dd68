"""`results.json`: what a run reached, written by the run itself into its own folder."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.utils.annotations import override

from rllib_vlm.callbacks.statistics import newcombe_interval

RESULTS_FILE = "results.json"
_MEMORY_EVERY_S = 2.0
_GIB = 1024**3


class Report(RLlibCallback):
    """Writes `results.json` after each of the run's evaluations.

    Fields: `warm_start` and `final`, each `{success, episodes, interval}` (Wilson, 95%), as far as
    the run has come; `difference` `{value, interval}` of the two (Newcombe, 95%); `seeds`; `wall_s`
    and `peak_rss_gb` of this process and all its children and the run's Ray workers, sampled every
    two seconds, since the run began or was last resumed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._began = time.monotonic()
        self._memory: PeakMemory | None = None

    @override(RLlibCallback)
    def on_algorithm_init(self, *, algorithm: Any, metrics_logger: Any = None, **kwargs: Any) -> None:
        self._began = time.monotonic()
        self._memory = PeakMemory()

    @override(RLlibCallback)
    def on_evaluate_end(
        self, *, algorithm: Any, metrics_logger: Any = None, evaluation_metrics: Any = None, **kwargs: Any
    ) -> None:
        record = results(algorithm.run_state.evaluations)
        record["seeds"] = [algorithm.config.seed]
        record["wall_s"] = round(time.monotonic() - self._began, 1)
        if self._memory is not None:
            record["peak_rss_gb"] = round(self._memory.peak_bytes / _GIB, 2)
        write_json(Path(algorithm.logdir) / RESULTS_FILE, record)


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
        interval = newcombe_interval(
            after["num_successes"], after["num_episodes"], before["num_successes"], before["num_episodes"]
        )
        out["difference"] = {
            "value": after["success_rate"] - before["success_rate"],
            "interval": list(interval),
        }
    return out


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file that is either the old one or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


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
