"""Says on which Ray node of this machine training episodes are played: a file named after the node's raylet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ray.rllib.callbacks.callbacks import RLlibCallback

FOLDER = "PLAYING_FOLDER"


class Playing(RLlibCallback):
    """Writes into the folder that the environment variable names; a worker is a child of its node's raylet."""

    def on_episode_step(self, *, env_runner: Any, **kwargs: Any) -> None:
        Path(os.environ[FOLDER], str(os.getppid())).touch()
