"""What a checkpoint consists of, so that one which was torn, cut or tampered with is told from a whole one.

`manifest.json` is written last, when everything else is on disk: a checkpoint without one was never finished.
It protects against accidents and not against an attacker, who can write a manifest too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from rllib_vlm.errors import CheckpointError
from rllib_vlm.files import write_json

MANIFEST = "manifest.json"
# Tune adds its own beside ours, after we are done.
_FOREIGN = frozenset({".metadata.json", ".is_checkpoint", ".tune_metadata"})
_BLOCK = 1 << 20


def write_manifest(root: Path) -> None:
    """Lists every file under `root` with its size and digest, all of them on disk before the list is.

    Raises:
        OSError: the disk is full or fails.
    """
    files = {}
    for path in _files(root):
        with path.open("rb") as file:
            digest = _digest(path)
            os.fsync(file.fileno())
        files[path.relative_to(root).as_posix()] = {"bytes": path.stat().st_size, "blake2b": digest}
    write_json(root / MANIFEST, {"files": files})


def damage(root: Path) -> list[str]:
    """What is wrong with the checkpoint at `root`, one line each; nothing where it is whole."""
    manifest = root / MANIFEST
    if not manifest.is_file():
        return [f"it has no {MANIFEST}: its writing was never finished, or something else wrote it"]
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        wanted = {str(name): (int(entry["bytes"]), str(entry["blake2b"])) for name, entry in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return [f"{MANIFEST} cannot be read: {error}"]
    if not wanted:
        return [f"{MANIFEST} lists nothing"]
    found = []
    for name, (size, digest) in wanted.items():
        path = root / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            found.append(f"{MANIFEST} names {name!r}, which is outside of the checkpoint")
        elif not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != size:
            found.append(f"{name} has {path.stat().st_size} bytes, not {size}")
        elif _digest(path) != digest:
            found.append(f"{name} is not what was written")
    return found


def require_whole(root: Path) -> None:
    """Refuses a checkpoint that is not as it was written, and offers the newest of the same run that is.

    Raises:
        CheckpointError: it is damaged.
    """
    found = damage(root)
    if not found:
        return
    raise CheckpointError(f"{root} is damaged: {in_short(found)}.{offer(root.parent)}")


def offer(folder: Path) -> str:
    """What there is in place of a damaged checkpoint in `folder`, as a sentence; empty where there is nothing."""
    other = newest_whole(folder)
    return f" The newest whole one beside it is {other}." if other is not None else ""


def in_short(found: list[str], most: int = 3) -> str:
    """The first few lines of `damage`, and how many more there are."""
    more = f" (and {len(found) - most} more)" if len(found) > most else ""
    return "; ".join(found[:most]) + more


def newest_whole(folder: Path) -> Path | None:
    """The last checkpoint in `folder`, by its number, that is as it was written."""
    for root in sorted(folder.glob("checkpoint_*"), reverse=True):
        if root.is_dir() and not damage(root):
            return root
    return None


def _files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.name not in _FOREIGN and path != root / MANIFEST:
            yield path


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
