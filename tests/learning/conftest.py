from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SUPPORT = str(Path(__file__).parents[1] / "support")
sys.path.insert(0, SUPPORT)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One small cluster for all learning tests."""
    import ray

    if ray.is_initialized():  # a cluster that RLlib started by itself for a test elsewhere
        ray.shutdown()
    # Simulators made for tests must be importable by name in every worker.
    paths = os.pathsep.join([SUPPORT, os.environ.get("PYTHONPATH", "")])
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=150 * 2**20,
        logging_level="ERROR",
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    yield
    ray.shutdown()
