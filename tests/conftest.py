"""Shared by every test: `--update-golden` rewrites the files golden tests compare with; a cluster for those who ask."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
SUPPORT = Path(__file__).parent / "support"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden("prompts/x.txt", text)` asserts that the text is the stored one."""

    def check(name: str, text: str) -> None:
        file = GOLDEN / name
        if request.config.getoption("--update-golden"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        assert file.is_file(), f"{file} is missing: run pytest --update-golden and read what it wrote"
        assert text == file.read_text(encoding="utf-8")

    return check


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One small cluster for all tests that ask for it."""
    import ray

    if ray.is_initialized():  # a cluster that RLlib started by itself for a test elsewhere
        ray.shutdown()
    # Simulators made for tests must be importable by name in every worker.
    paths = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
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
