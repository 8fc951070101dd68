from __future__ import annotations

import sys
from pathlib import Path

# Simulators made for tests must be importable by name, also in the processes that run them.
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))
