"""What tensors leave behind goes back to the machine."""

import subprocess
import sys

import pytest

from rllib_vlm.core.heap import _malloc_trim

# Many blocks below the size from which glibc maps memory of their own; the last is kept, and all before it are holes.
PROGRAM = """
import gc, psutil
from rllib_vlm.core.heap import give_back
resident = lambda: psutil.Process().memory_info().rss >> 20
blocks = [bytearray(60_000) for _ in range(4_000)]
last = bytearray(60_000)
full = resident()
blocks.clear(); gc.collect()
kept = resident()
give_back()
print(full - kept, full - resident())
"""


@pytest.mark.skipif(_malloc_trim() is None, reason="not glibc")
def test_holes_are_given_back():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < 50 and after > 150  # of 240 MB
