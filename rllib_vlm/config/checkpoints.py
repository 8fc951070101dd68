"""Finds the checkpoint that a path on the command line means."""

from __future__ import annotations

from pathlib import Path

from rllib_vlm.algorithms.description import DESCRIPTION
from rllib_vlm.algorithms.manifest import MANIFEST, offer, require_whole
from rllib_vlm.errors import CheckpointError, RLlibVLMError

MARK = "rllib_checkpoint.json"  # by which RLlib knows a checkpoint
_PREFIX = "checkpoint_"


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint `path` means: itself, or the newest one of a trial or run folder. Never a name of a hub.

    Raises:
        CheckpointError: `path` is named as a checkpoint and is none.
        RLlibVLMError: there is none.
    """
    try:
        root = Path(path).expanduser().resolve()
        if not root.is_dir():
            what = "is a file" if root.exists() else "does not exist"
            raise RLlibVLMError(f"{root} {what}; give a checkpoint, a trial's folder or a run's folder")
        found = [root] if is_checkpoint(root) else []
        for pattern in (f"{_PREFIX}*", f"*/{_PREFIX}*"):
            found = found or [d for d in root.glob(pattern) if d.is_dir()]
        newest = max(found, key=lambda d: (d.parent.stat().st_mtime, d.name), default=None)
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # a home that nobody has, a link to itself, a name too long
        raise RLlibVLMError(f"{str(path)[:200]}: {getattr(error, 'strerror', None) or error}") from error
    if newest is None and root.name.startswith(_PREFIX):
        newest = root
    if newest is None:
        raise RLlibVLMError(
            f"{root} holds no checkpoint; give a checkpoint, a trial's folder or a run's folder"
        )
    if not is_checkpoint(newest):
        raise CheckpointError(
            f"{newest} is damaged: it has no {MARK} and no {MANIFEST}.{offer(newest.parent)}"
        )
    return newest


def is_checkpoint(folder: Path) -> bool:
    """Whether it is one, whole or not."""
    return any((folder / name).is_file() for name in (MARK, MANIFEST, DESCRIPTION))


def check(folder: Path) -> bool:
    """Refuses a checkpoint of ours that is not as it was written; False for one of RLlib's own, which cannot tell.

    Raises:
        CheckpointError: it is damaged; the newest whole one is named.
    """
    ours = any((folder / name).exists() for name in (DESCRIPTION, MANIFEST))
    if ours:
        require_whole(folder)
    return ours
