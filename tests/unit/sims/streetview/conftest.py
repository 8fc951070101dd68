from __future__ import annotations

from pathlib import Path

import pytest
from street_data import BEND, SHORT, write_data


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of the two routes."""
    return write_data(tmp_path / "data", [BEND, SHORT])
