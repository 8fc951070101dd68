import json
import pickle
from pathlib import Path

import pytest

from rllib_vlm import cli


def run(*argv: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(a) for a in argv])
    return caught.value.code


def test_data_city_convert_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "city"
    assert run("data", "city", "--routes", 10, "--width", 128, folder) == 0
    assert run("data", "check", folder) == 0
    assert f"{folder}: ok" in capsys.readouterr().out
    (folder / "street_views" / "pano_c0000.jpg").unlink()
    assert run("data", "check", folder) == 2
    error = capsys.readouterr().err
    assert "1 problem" in error and "pano_c0000: neither" in error
    pickled = tmp_path / "gps_pano_mapping.pkl"
    pickled.write_bytes(pickle.dumps({(1.0, 2.0): "a"}))
    assert run("data", "convert", tmp_path) == 0
    assert json.loads((tmp_path / "gps_pano_mapping.json").read_text())["panoramas"] == [[1.0, 2.0, "a"]]
    assert run("data", "convert", pickled) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (("city", "--style", "nyx"), "Did you mean 'nyc'?"),
        (("city", "--layout", "cubes"), "--layout has no 'cubes'"),
        (("city", "--width", "130"), "multiple of 4"),
        (("city", "--routes", "20001"), "at most 20000"),
        (("check",), "route_infos.json"),
        (("convert",), "nowhere is no readable pickle: FileNotFoundError"),
    ],
)
def test_data_commands_refuse_cleanly(
    argv: tuple[str, ...], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run("data", *argv, tmp_path / "nowhere") == 2
    assert complaint in capsys.readouterr().err
