import subprocess
import sys
from pathlib import Path

import pytest

from rllib_vlm.config.lock import held
from rllib_vlm.errors import RLlibVLMError

HOLD = """
import sys, time
from pathlib import Path
from rllib_vlm.config.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_one_process_s_until_that_process_is_gone(tmp_path: Path):
    folder = tmp_path / "a b" / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "held\n"
            with pytest.raises(RLlibVLMError, match="is in use: another process trains in it"), held(folder):
                pass
        finally:
            other.kill()
    with held(folder):
        assert not list(folder.iterdir()), "nothing is left of it"
    with held("s3://bucket/run"):
        pass
