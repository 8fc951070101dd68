"""`rllib train` in a process of its own, whose workers can be killed, and what it has written so far."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

WORKERS = {
    "algorithm": "ray::VLMPPO",
    "env runner": "ray::VLMEnvRunner",
    "learner": "ray::_WrappedExecutable",
}


class Run:
    """`rllib train` in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [str(Path(sys.executable).with_name("rllib")), "train", "file", str(folder / "x.yaml"),
             "--storage", str(folder), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=folder,
        )  # fmt: skip
        self.folder = folder / "run"
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def _kill_worker(self, title: str, *, child: bool = False) -> bool:
        """Kills the process of Ray's with this title, or one that it started; False where there is none just now."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if not " ".join(process.cmdline()).startswith(title):
                    continue
                if not child:
                    process.kill()
                    return True
                for own in process.children():
                    if "simulator_process" in " ".join(own.cmdline()):
                        own.kill()
                        return True
            except psutil.NoSuchProcess:
                continue
        return False

    def get_further(self) -> None:
        """Waits for one more iteration."""
        before = max(results(self.folder), default=0)
        self._wait(lambda: max(results(self.folder), default=0) > before)

    def lose(self, title: str, *, child: bool = False) -> None:
        """Has a worker killed as soon as there is one."""
        self._wait(lambda: self._kill_worker(title, child=child))

    def _wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert self.process.poll() is None, self.end()
            time.sleep(0.1)

    def end(self) -> str:
        self.process.wait()
        self._reader.join(10)
        return "".join(self.lines)


def results(folder: Path) -> dict[int, dict]:
    """The record of every iteration; one that was played again after a kill stands there once."""
    lines = [line for file in folder.glob("*/result.json") for line in file.read_text().splitlines()]
    records = [json.loads(line) for line in lines if line.endswith("}")]  # the last one is being written
    found = {record["training_iteration"]: record for record in records}
    assert len(found) == len(records)
    return found


def number(record: dict, path: str) -> float:
    value = record
    for key in path.split("/"):
        value = value.get(key, {})
    return value if isinstance(value, int | float) else float("nan")
