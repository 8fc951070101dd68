"""Shared by every test: how they share the machine, golden files, a cluster for those who ask."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent / "golden"
SUPPORT = Path(__file__).parent / "support"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden")


def pytest_configure() -> None:
    # Two clusters of Ray may be up side by side, each with the runs that its tests start: none of them may join
    # another, nor one that is up on this machine for something else.
    os.environ["RAY_ADDRESS"] = "local"
    # Else each of them writes ~/.ray/auth_token where there is none yet, and reads the other's.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # The models of tests are too small to gain from threads that wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes, each with its cluster; none but this one where a single file is asked for."""
    files = {Path(argument.split("::")[0]) for argument in config.args}
    return 0 if len(files) == 1 and files.pop().is_file() else 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from scheduling import OnceEach

    return OnceEach(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, and then those with a cluster: the short ones even out what is left at the end."""
    cost: dict[Path, int] = {}
    for item in items:
        first = any(item.get_closest_marker(name) is not None for name in ("long", "learning"))
        own = 2 if first else int("ray_cluster" in getattr(item, "fixturenames", ()))
        cost[item.path] = max(own, cost.get(item.path, 0))
    items.sort(key=lambda item: -cost[item.path])


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
        _system_config={"metrics_report_interval_ms": 2000},  # for those who read what Ray tells Prometheus
    )
    yield
    ray.shutdown()
