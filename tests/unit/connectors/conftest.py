from __future__ import annotations

import sys
from pathlib import Path

# Helpers and simulators made for tests must be importable by name, also in other processes.
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))
