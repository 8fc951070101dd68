"""Tests with real engines: of vLLM's build for CPUs, on the tiny Qwen2.5-VL."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = pytest.mark.skip(reason="needs vLLM, which is not installed: make test-engines")
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.vllm)
            if find_spec("vllm") is None:
                item.add_marker(missing)
