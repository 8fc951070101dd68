"""What a path on the command line means, and that a damaged checkpoint is never loaded."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ray import tune
from ray.train._internal.checkpoint_manager import _CheckpointManager
from ray.train._internal.session import _TrainingResult

from rllib_vlm import cli
from rllib_vlm.algorithms.description import DESCRIPTION
from rllib_vlm.algorithms.manifest import MANIFEST, damage, write_manifest
from rllib_vlm.config.checkpoints import MARK, BestCheckpoints, check, find_checkpoint
from rllib_vlm.errors import CheckpointError, RLlibVLMError


def run(*argv: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(a) for a in argv])
    return caught.value.code


def checkpoint(root: Path, content: bytes = b"state") -> Path:
    """As RLlib and we lay one out; the pickles are none, so that loading one would be a traceback."""
    (root / "learner_group" / "hf").mkdir(parents=True)
    (root / MARK).write_text('{"type": "Algorithm", "checkpoint_version": "2.1"}')
    (root / DESCRIPTION).write_text(json.dumps({"training_iteration": 1}))
    (root / "class_and_ctor_args.pkl").write_bytes(b"no pickle" + content)
    (root / "algorithm_state.pkl").write_bytes(content * 50)
    (root / "learner_group" / "hf" / "model.safetensors").write_bytes(
        random.Random(len(content)).randbytes(4000)
    )
    write_manifest(root)
    return root


NAMES = ["a||b", "a:b", "with space", 'it\'s "quoted"', "ünï-ćode 冰", "[a]*?", "%20#x", "$HOME", "org/name"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_found_and_a_path_that_is_not_there_says_so(
    name: str, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    # Nothing is looked up anywhere: the hub's library has no way out.
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:9")
    assert run("evaluate", name) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert f"{tmp_path / name} does not exist" in error
    made = checkpoint(tmp_path / name / "trial" / "checkpoint_000001")
    for where in (made, made.parent, made.parent.parent, name):
        assert find_checkpoint(where) == made


@pytest.mark.parametrize("path", ["~no-such-user", "~no-such-user/run", "x" * 300, "a/" + "y" * 5000])
@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_path_no_system_knows_is_one_clear_error(
    command: str, path: str, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert run(command, path, *(["out"] if command == "export" else [])) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and path[:20] in error
    assert not list(tmp_path.iterdir())


def test_a_link_to_itself_and_a_file_are_told(tmp_path: Path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    with pytest.raises(RLlibVLMError, match="loop"):
        find_checkpoint(tmp_path / "loop")
    with pytest.raises(RLlibVLMError, match="is a file"):
        find_checkpoint(tmp_path / "file")


def test_what_was_never_finished_is_no_checkpoint(tmp_path: Path):
    trial = tmp_path / "run" / "trial"
    whole = checkpoint(trial / "checkpoint_000001")
    (trial / ".checkpoint_000002.tmp").mkdir()
    assert find_checkpoint(tmp_path / "run") == whole
    (trial / "checkpoint_000003").mkdir()
    for path in (trial / "checkpoint_000003", trial):
        with pytest.raises(CheckpointError, match=f"{MARK}.*newest whole.*checkpoint_000001"):
            find_checkpoint(path)


KINDS = ("cut", "flip", "gone", "longer", "empty", "swapped", "foreign", "folder", "of another", "all gone")


def damaged(root: Path, other: Path, rng: random.Random) -> str:
    """Damages the checkpoint at `root`, and says how."""
    files = sorted(p for p in root.rglob("*") if p.is_file())
    file = rng.choice(files)
    kind = rng.choice(KINDS)
    content = bytearray(file.read_bytes())
    if kind == "cut":
        file.write_bytes(content[: rng.randrange(len(content))])
    elif kind == "flip":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
    elif kind == "gone":
        file.unlink()
    elif kind == "longer":
        file.write_bytes(bytes(content) + rng.randbytes(9))
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "swapped":
        second = rng.choice([f for f in files if f != file])
        theirs = second.read_bytes()
        second.write_bytes(content)
        file.write_bytes(theirs)
    elif kind == "foreign":
        file.write_bytes(rng.randbytes(rng.randrange(1, 300)))
    elif kind == "folder":
        file.unlink()
        file.mkdir()
    elif kind == "of another":
        shutil.copyfile(other / file.relative_to(root), file)
    else:
        for each in files:
            each.unlink()
    return f"{kind}: {file.relative_to(root)}"


def test_no_damage_gets_past_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    seed = int(os.environ.get("FUZZ_SEED", "0"))
    print(f"FUZZ_SEED={seed}")
    rng = random.Random(seed)
    whole = checkpoint(tmp_path / "run" / "trial" / "checkpoint_000001", b"older")
    kept = checkpoint(tmp_path / "kept", b"state of now")
    newest = whole.with_name("checkpoint_000002")
    refused = 0
    for _ in range(150):
        shutil.rmtree(newest, ignore_errors=True)
        shutil.copytree(kept, newest)
        how = damaged(newest, whole, rng)
        if (newest / MANIFEST).is_file() and not damage(newest):
            continue  # a blank in the manifest, or a file that is the same in both
        refused += 1
        command = rng.choice([["evaluate"], ["export"]])
        path = rng.choice([newest, newest.parent, newest.parent.parent])
        code = run(*command, path, *([tmp_path / "out"] if command == ["export"] else []))
        error = capsys.readouterr().err
        assert code == 2, how
        assert error.startswith("error: ") and error.count("\n") == 1, f"{how}: {error}"
        assert str(newest) in error, f"{how}: {error}"
        if command == ["evaluate"]:
            assert f"The newest whole one beside it is {whole}" in error, f"{how}: {error}"
    assert refused > 120
    assert not (tmp_path / "out").exists()


def test_a_whole_folder_of_something_else_is_not_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    foreign = tmp_path / "checkpoint_000001"
    foreign.mkdir()
    (foreign / "model.bin").write_bytes(b"weights")
    assert run("evaluate", foreign) == 2
    assert "is damaged: it has no rllib_checkpoint.json" in capsys.readouterr().err
    (foreign / MARK).write_text("{}")
    (foreign / "class_and_ctor_args.pkl").write_bytes(b"\x80\x04K\x01.")  # a number
    assert check(foreign) is False
    assert run("evaluate", foreign) == 2
    assert "is not an algorithm's checkpoint of this RLlib" in capsys.readouterr().err


def kept_by(book: BestCheckpoints, folder: Path, results: list[dict]) -> list[int]:
    for number, metrics in enumerate(results):
        place = checkpoint(folder / f"checkpoint_{number:06d}")
        book.register_checkpoint(_TrainingResult(tune.Checkpoint.from_directory(str(place)), metrics))
    return sorted(int(place.name[-6:]) for place in folder.iterdir())


def test_the_best_are_kept_by_a_metric_anywhere_in_a_result(tmp_path: Path):
    rates = [0.2, 0.9, None, 0.5, 0.7, float("nan"), 0.1]
    results = [{} if rate is None else {"evaluation": {"success_rate": rate}} for rate in rates]
    config = tune.CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="evaluation/success_rate")
    # Two best, and the newest to go on from.
    assert kept_by(BestCheckpoints(config), tmp_path / "a", results) == [1, 4, 6]
    fewest = tune.CheckpointConfig(
        num_to_keep=1, checkpoint_score_attribute="evaluation/success_rate", checkpoint_score_order="min"
    )
    assert kept_by(BestCheckpoints(fewest), tmp_path / "b", results[:6]) == [0, 5]
    newest = tune.CheckpointConfig(num_to_keep=3)
    first = _CheckpointManager(newest)
    assert kept_by(first, tmp_path / "c", results[:2]) == [0, 1]
    assert BestCheckpoints.of(first).latest_checkpoint_result is first.latest_checkpoint_result
    assert kept_by(BestCheckpoints(newest), tmp_path / "d", results) == [4, 5, 6]


KILLED_WHILE_IT_DELETES = """
import os, signal, sys
from pathlib import Path
from ray import tune
from ray.train._internal.session import _TrainingResult
from rllib_vlm.config.checkpoints import BestCheckpoints

book = BestCheckpoints(tune.CheckpointConfig(num_to_keep=2))
removed = []

def watch(event, arguments):
    if event == "os.remove":
        removed.append(arguments)
        if len(removed) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
for place in sorted(Path(sys.argv[1]).iterdir()):
    book.register_checkpoint(_TrainingResult(tune.Checkpoint.from_directory(str(place)), {}))
"""


def test_a_run_that_is_killed_while_it_deletes_a_checkpoint_leaves_no_damaged_one(tmp_path: Path):
    places = [checkpoint(tmp_path / f"checkpoint_{number:06d}") for number in range(3)]
    files = sorted(path.name for path in places[0].rglob("*") if path.is_file())
    ended = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_IT_DELETES, str(tmp_path)], capture_output=True, check=False
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert sorted(tmp_path.glob("checkpoint_*")) == places[1:]
    assert not any(map(damage, places[1:]))
    (going,) = tmp_path.glob(".checkpoint_000000.*tmp")  # which resuming removes
    assert 0 < len([path for path in going.rglob("*") if path.is_file()]) < len(files)
