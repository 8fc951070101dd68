"""Keeps start-up notices of Ray's libraries out of the output; their errors, and our lines, stay.

Imports nothing heavy: Ray calls `quiet` first thing in every worker process.
"""

from __future__ import annotations

import logging
import os
import warnings

_CHATTY = (
    "ray._common.deprecation",
    "ray._private.accelerators",
    "ray.rllib.algorithms.algorithm_config",
    "ray.train._internal.storage",
    "ray.tune.trainable.trainable",
    "ray.tune.utils.util",
    "ray.tune.tune",
)


def quiet() -> None:
    """Raises the bar of a few chatty loggers, of this process only."""
    # Tune's newer terminal output prints a box and Ray's temporary paths even when asked to be silent.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
