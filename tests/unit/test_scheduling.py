"""One test that ends its process costs that test, not the run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = """
import os, time

def test_before(): pass
def test_that_crashes(): os._exit(3)
def test_that_hangs(): time.sleep(600)
def test_after(): pass
"""


def test_what_ends_its_process_is_not_begun_again(tmp_path: Path):
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_ending.py").write_text(TESTS)
    (tmp_path / "test_another.py").write_text("def test_another(): pass\n")
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {ROOT / 'tests' / 'support'}\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", "--timeout", "10",
         "--timeout-method", "thread"],
        cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert "2 failed, 3 passed" in done.stdout, done.stdout
    assert done.stdout.count("node down") == 2
