"""A checkpoint that is not as it was written is known by its manifest."""

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rllib_vlm.algorithms.manifest import MANIFEST, damage, newest_whole, require_whole, write_manifest
from rllib_vlm.errors import CheckpointError


def checkpoint(root):
    (root / "learner" / "hf").mkdir(parents=True)
    (root / "state.pkl").write_bytes(b"state" * 100)
    (root / "learner" / "hf" / "model.safetensors").write_bytes(os.urandom(5000))
    (root / "learner" / "empty").write_bytes(b"")
    write_manifest(root)
    return root


def test_a_whole_checkpoint_is_whole_wherever_it_is_copied(tmp_path):
    root = checkpoint(tmp_path / "a b||ü:")
    assert damage(root) == []
    require_whole(root)
    moved = root.rename(tmp_path / "elsewhere")
    (moved / ".metadata.json").write_text("{}")  # Tune's own
    assert damage(moved) == []


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_found(tmp_path_factory, data):
    root = checkpoint(tmp_path_factory.mktemp("c") / "checkpoint_000001")
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.stat().st_size)
    file = data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    kind = data.draw(st.sampled_from(["cut", "flip", "gone", "longer"]))
    if kind == "cut":
        file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    elif kind == "flip":
        where = data.draw(st.integers(0, len(content) - 1))
        content[where] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(content)
    elif kind == "gone":
        file.unlink()
    else:
        file.write_bytes(bytes(content) + b"x")
    if file.name == MANIFEST and not damage(root):
        # A changed blank or a longer end may leave the list as it was: then nothing is wrong.
        assert json.loads(file.read_text())["files"]
        return
    with pytest.raises(CheckpointError, match="damaged"):
        require_whole(root)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"files": 3}', '{"files": {"a": {}}}', '{"files": {"a": null}}']
)
def test_a_manifest_that_is_none_is_told(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    assert "cannot be read" in damage(tmp_path)[0]


@pytest.mark.parametrize("name", ["/etc/passwd", "../../secret"])
def test_a_manifest_may_not_point_outside(tmp_path, name):
    (tmp_path / MANIFEST).write_text(json.dumps({"files": {name: {"bytes": 1, "blake2b": ""}}}))
    assert "outside" in damage(tmp_path)[0]


def test_the_newest_whole_one_is_offered(tmp_path):
    for number in (1, 2, 3, 4):
        checkpoint(tmp_path / f"checkpoint_{number:06d}")
    (tmp_path / "checkpoint_000004" / "state.pkl").write_bytes(b"torn")
    (tmp_path / "checkpoint_000003" / MANIFEST).unlink()
    assert newest_whole(tmp_path) == tmp_path / "checkpoint_000002"
    with pytest.raises(CheckpointError, match="state.pkl has 4 bytes, not 500.*checkpoint_000002"):
        require_whole(tmp_path / "checkpoint_000004")


def test_nothing_at_all_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="no manifest.json"):
        require_whole(tmp_path)
