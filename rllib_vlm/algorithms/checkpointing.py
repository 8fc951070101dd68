"""Checkpoints of an algorithm: everything that shapes its future, on disk whole or not at all."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow.fs import LocalFileSystem
from ray import tune
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_LEARNER_GROUP
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.annotations import override

from rllib_vlm.algorithms.buffer import DemonstrationBuffer
from rllib_vlm.algorithms.description import write_description
from rllib_vlm.algorithms.dispatch import ask_learners, require_learners
from rllib_vlm.algorithms.manifest import require_whole, write_manifest
from rllib_vlm.algorithms.run_state import RunState
from rllib_vlm.algorithms.sampling_weights import SamplingWeights
from rllib_vlm.core.learner import WRITTEN
from rllib_vlm.files import new_folder, or_go_on

if TYPE_CHECKING:
    from ray.train._internal.session import _TrainingResult

    from rllib_vlm.algorithms.vlm_config import VLMAlgorithmConfig
    from rllib_vlm.env.weights import FrozenWeights

logger = logging.getLogger(__name__)

RUN_STATE = "run_state"


class CheckpointedAlgorithm(Algorithm):
    """RLlib's, whose checkpoints also hold how far the run has come, and say of themselves that they are whole."""

    config: VLMAlgorithmConfig
    run_state: RunState
    buffer: DemonstrationBuffer
    _holds_collected = False
    _frozen: FrozenWeights | None = None  # what runners were last told of the weights that never change
    # What the next batch is sampled with, where it is not the learner's weights.
    _behind: SamplingWeights | None = None

    @property
    def lasting_folder(self) -> Path:
        """The trial's own folder, where what is written outlives this process at once; without Tune, RLlib's folder."""
        storage = self._storage
        if storage is not None and isinstance(storage.storage_filesystem, LocalFileSystem):
            folder = Path(storage.trial_fs_path)
            if folder.is_dir():
                return folder
        return Path(self.logdir)

    @abstractmethod
    def _sync_weights(self, group: EnvRunnerGroup) -> None:
        """All runners of `group` have the learner's weights when this returns."""

    @abstractmethod
    def _drop_rollouts(self) -> None:
        """Nothing that was sampled so far is learnt from any more."""

    @override(Algorithm)
    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> Any:
        with self._collected():
            state = super().get_state(components, not_components=not_components, **kwargs)
        state[RUN_STATE] = self.run_state.to_dict()
        return state

    @override(Algorithm)
    def set_state(self, state: Any) -> None:
        super().set_state(state)
        self._frozen = None  # they may be others now
        if RUN_STATE in state:
            self.run_state = RunState.from_dict(state[RUN_STATE])
            self.run_state.reopen(self.config)

    @override(Algorithm)
    def save(self, checkpoint_dir: str | None = None) -> _TrainingResult:
        """Tune's. In a trial on this machine's disks, the checkpoint gets its name when all of it is on the disk.

        Where a trial's checkpoint cannot be written, as on a full disk, the run goes on without it.
        """
        if checkpoint_dir is not None or self._storage is None:
            return super().save(checkpoint_dir)
        index = self._storage.current_checkpoint_index
        try:
            if isinstance(self._storage.storage_filesystem, LocalFileSystem):
                return self._save_in_place()
            return super().save()
        except OSError as error:
            self._storage.current_checkpoint_index = index
            logger.error("The checkpoint after iteration %d could not be written (%s). The run goes on without it.",
                         self.iteration, error)  # fmt: skip
            return self._training_result(None)

    @contextmanager
    def _collected(self) -> Iterator[None]:
        """The first learner, whom RLlib asks for all of them, has the whole optimizer state meanwhile."""
        if self._holds_collected or self.config.num_learners < 2:
            yield
            return
        ask_learners(self.learner_group, "collect")
        self._holds_collected = True
        try:
            yield
        finally:
            self._holds_collected = False
            ask_learners(self.learner_group, "release")

    def _save_in_place(self) -> _TrainingResult:
        """Like Tune's own, which writes it elsewhere and copies it, file after file, to its place."""
        storage = self._storage
        storage._update_checkpoint_index(self._last_result or {})  # noqa: SLF001
        place = Path(storage.checkpoint_fs_path)
        with new_folder(place) as folder:
            self.save_checkpoint(str(folder))
        checkpoint = tune.Checkpoint(filesystem=storage.storage_filesystem, path=str(place))
        with or_go_on("a copy of the trial's own files"):
            storage.persist_artifacts(force=storage.sync_config.sync_artifacts_on_checkpoint)
        return self._training_result(checkpoint)

    def _training_result(self, checkpoint: tune.Checkpoint | None) -> _TrainingResult:
        from ray.train._internal.session import _TrainingResult

        return _TrainingResult(checkpoint=checkpoint, metrics=dict(self._last_result or {}))

    @override(Algorithm)
    def save_to_path(self, path: Any = None, **kwargs: Any) -> str:
        """RLlib's; on a local disk also says of what policy it is, and has a manifest by which a torn one is known.

        Raises:
            LearnerError: a learner died while it wrote.
            OSError: the disk is full or fails.
        """
        path = _absolute(path)
        mark = Path(COMPONENT_LEARNER_GROUP, COMPONENT_LEARNER, WRITTEN)
        if path is not None:
            Path(path, mark).unlink(missing_ok=True)  # of what stood there before
        with self._collected():
            where: str = super().save_to_path(path, **kwargs)
        root = Path(where)
        if root.is_dir():
            if not (root / mark).is_file():
                require_learners(self.learner_group)
                raise OSError("the learner could not write its part, as its log says")
            write_description(root, self)
            self.buffer.save(root)
            if self._behind is not None:
                self._behind.save(root)
            write_manifest(root)  # last: it lists everything
        return where

    @override(Algorithm)
    def restore_from_path(
        self, path: Any, *, component: str | None = None, checked: bool = False, **kwargs: Any
    ) -> None:
        """RLlib's, and the runners have the weights when it returns.

        Args:
            path: of the checkpoint.
            component: restores this part alone.
            checked: the checkpoint was found to be whole just now.
            **kwargs: RLlib's.

        Raises:
            CheckpointError: the checkpoint is not as it was written.
            LearnerError: a learner died or could not read it.
        """
        where = _absolute(path)
        local = component is None and Path(where).is_dir()
        if local and not checked:
            require_whole(Path(where))
        self._drop_rollouts()
        try:
            super().restore_from_path(where, component=component, **kwargs)
        except IndexError:  # RLlib found no learner in service
            require_learners(self.learner_group)
            raise
        require_learners(self.learner_group)
        self._frozen = None
        if local and self.config.warm_start_buffer_episodes:
            self.buffer.load(Path(where))
        self._behind = None
        if local and self.config.one_step_off_policy:
            self._behind = SamplingWeights.load(Path(where))
        self._sync_weights(self.env_runner_group)

    def roll_back(self, path: str | Path, *, lr_factor: float, clip_factor: float) -> None:
        """Takes weights, optimizers and counters back to a saved state, from which the run goes on more carefully.

        Args:
            path: what `save_to_path` wrote.
            lr_factor: of the learning rates from now on.
            clip_factor: of the clip range from now on.
        """
        now, iteration, metrics = self.run_state, self.iteration, self.metrics.get_state()
        self.restore_from_path(str(path))
        self._behind = None  # on policy again, to begin with
        self.metrics.set_state(metrics)  # what was played and learnt since was played and learnt
        self._iteration = iteration
        self.run_state = now.back_to(self.run_state, lr_factor=lr_factor, clip_factor=clip_factor)


def _absolute(path: Any) -> Any:
    """Of a local path; pyarrow takes others for URIs without a scheme."""
    return path if path is None or "://" in str(path) else str(Path(path).expanduser().absolute())
