"""Which checkpoint a path on the command line means, and which of a trial's are kept."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from pyarrow.fs import LocalFileSystem
from ray.train._internal.checkpoint_manager import _CheckpointManager
from ray.train._internal.session import _TrainingResult
from ray.train._internal.storage import _delete_fs_path
from ray.tune.utils.util import flatten_dict

from rllib_vlm.algorithms.description import DESCRIPTION
from rllib_vlm.algorithms.manifest import MANIFEST, offer, require_whole
from rllib_vlm.errors import CheckpointError, RLlibVLMError
from rllib_vlm.files import remove_folder

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


class BestCheckpoints(_CheckpointManager):
    """Tune's book of a trial's checkpoints, which keeps the best by any metric of a result.

    Tune's own looks for `checkpoint_score_attribute` at the top of a result only, where `evaluation/success_rate` never
    is, and takes a checkpoint without the metric for the best there is. Here such a one is the worst. Tune's own also
    deletes file after file, so that a run that is killed meanwhile would be left with a damaged checkpoint.
    """

    @classmethod
    def of(cls, manager: _CheckpointManager) -> BestCheckpoints:
        """One that knows what `manager` does."""
        new = cls(manager.checkpoint_config)
        new._checkpoint_results = list(manager._checkpoint_results)  # noqa: SLF001
        new._latest_checkpoint_result = manager.latest_checkpoint_result
        return new

    def register_checkpoint(self, checkpoint_result: _TrainingResult) -> None:
        metric = self.checkpoint_config.checkpoint_score_attribute
        if metric is not None and metric not in checkpoint_result.metrics:
            score = flatten_dict(checkpoint_result.metrics).get(metric, math.nan)
            checkpoint_result = _TrainingResult(
                checkpoint=checkpoint_result.checkpoint, metrics={**checkpoint_result.metrics, metric: score}
            )
        config = self.checkpoint_config
        self._checkpoint_config = replace(config, num_to_keep=None)  # or files would be deleted one by one
        try:
            super().register_checkpoint(checkpoint_result)
        finally:
            self._checkpoint_config = config
        if config.num_to_keep is not None:
            self._keep(config.num_to_keep)

    def _keep(self, number: int) -> None:
        """Deletes all but the best `number` and the newest; killed meanwhile, it leaves none that looks damaged."""
        results: list[_TrainingResult] = self._checkpoint_results
        gone = [result for result in results[:-number] if result is not self.latest_checkpoint_result]
        results[:] = [result for result in results if result not in gone]
        for result in gone:
            place = result.checkpoint
            if isinstance(place.filesystem, LocalFileSystem):
                remove_folder(Path(place.path))
            else:
                _delete_fs_path(fs=place.filesystem, fs_path=place.path)
