from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rllib_vlm.files import append_json_line, new_folder, or_go_on, remove_folder, write_json, write_text


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB, of which none are left; skipped where no disk can be mounted."""
    if os.geteuid():
        pytest.skip("only root may mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode()}")
    try:
        (disk / "old.json").write_text('{"a": 1}')
        (disk / "lines.jsonl").write_text('{"n": 0}\n')
        with (disk / "rest").open("wb", buffering=0) as file:
            file.write(bytes(1 << 20))  # as much of it as there is room for
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_what_was_there(full_disk: Path, caplog: pytest.LogCaptureFixture):
    big = {"b": "x" * (1 << 16)}
    with pytest.raises(OSError, match="No space"):
        write_json(full_disk / "old.json", big)
    assert json.loads((full_disk / "old.json").read_text()) == {"a": 1}
    with pytest.raises(OSError, match="No space"):
        append_json_line(full_disk / "lines.jsonl", big)
    assert (full_disk / "lines.jsonl").read_text() == '{"n": 0}\n', "half a line would spoil the next one"
    with pytest.raises(OSError, match="No space"), new_folder(full_disk / "checkpoint") as folder:
        (folder / "weights").write_bytes(bytes(1 << 16))
    assert {p.name for p in full_disk.iterdir()} == {"old.json", "lines.jsonl", "rest"}
    with caplog.at_level(logging.ERROR), or_go_on("a.json"):
        write_json(full_disk / "a.json", big)
    assert "a.json could not be written" in caplog.text and "No space" in caplog.text

    (full_disk / "rest").unlink()
    append_json_line(full_disk / "lines.jsonl", {"n": 1})
    assert [json.loads(line)["n"] for line in (full_disk / "lines.jsonl").read_text().splitlines()] == [0, 1]


def test_a_folder_has_its_name_when_it_is_whole_and_replaces_an_older_one(tmp_path: Path):
    place = tmp_path / "a"
    for content in ("old", "new"):
        with new_folder(place) as folder:
            (folder / content).mkdir()
            (folder / content / "x").write_text(content)
            assert not (place / content).exists()
    assert [p.name for p in place.iterdir()] == ["new"]
    with pytest.raises(ZeroDivisionError), new_folder(place):
        1 / 0  # noqa: B018
    assert (place / "new" / "x").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_is_removed_and_what_cannot_be_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for name in ("a/b/x", ".a.going.tmp/y"):  # the second one of a process that was killed
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("1")
    remove_folder(tmp_path / "a")
    remove_folder(tmp_path / "a")
    assert not list(tmp_path.iterdir())
    assert not caplog.records
    remove_folder(Path("/proc/self/fd"))
    assert "/proc/self/fd could not be removed" in caplog.text


def test_text_is_replaced_whole(tmp_path: Path):
    write_text(tmp_path / "a", "one")
    write_text(tmp_path / "a", "zwei ü")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "zwei ü"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
