"""A checkpoint -> the figures of its policy on fresh episodes."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.tune.utils.util import flatten_dict

from rllib_vlm.algorithms.checkpointing import CheckpointedAlgorithm
from rllib_vlm.algorithms.validation import check_split
from rllib_vlm.config.checkpoints import check
from rllib_vlm.config.document import Document, Mark
from rllib_vlm.config.overrides import parse_overrides
from rllib_vlm.config.sections import apply_sections, sections
from rllib_vlm.errors import ConfigErrors, RLlibVLMError


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A checkpoint that was found to be whole, and the configuration to play its policy with."""

    folder: Path
    config: Any
    checked: bool  # against its manifest

    def run(self) -> dict[str, Any]:
        """Restores the algorithm, evaluates it once, and returns flat metrics by name; Ray must be up."""
        algorithm = self.restore()
        try:
            results = algorithm.evaluate()
        finally:
            algorithm.stop()
        flat = flatten_dict(results)
        return {k: _plain(v) for k, v in sorted(flat.items()) if isinstance(v, Real | str)}

    def restore(self) -> Any:
        """The algorithm, for whoever stops it in the end; Ray must be up."""
        known = {"checked": self.checked} if issubclass(self.config.algo_class, CheckpointedAlgorithm) else {}
        return Algorithm.from_checkpoint(str(self.folder), config=self.config, **known)


def prepare(
    folder: Path, *, episodes: int | None = None, split: str | None = None, overrides: Sequence[str] = ()
) -> Evaluation:
    """What `run` then does; needs no Ray.

    Args:
        folder: of the checkpoint.
        episodes: to play; by default as many as in training.
        split: of the simulator's tasks.
        overrides: of the configuration, as `--set` takes them.

    Raises:
        ConfigErrors: an override the algorithm's config does not take.
        CheckpointError: the checkpoint is not as it was written.
        RLlibVLMError: the folder holds no algorithm of this RLlib.
    """
    checked = check(folder)
    config = _stored_config(folder)
    errors: list[str] = []
    wishes = Document({}, {(): Mark("command line")}).overlay(parse_overrides(overrides, errors))
    apply_sections(config, Document({"config": {}}).overlay(wishes), ("config",), errors)
    if errors:
        raise ConfigErrors(str(folder), errors)
    if episodes is not None:
        config.evaluation(evaluation_duration=episodes, evaluation_duration_unit="episodes")
    if split is not None:
        _choose_split(config, split)
    if issubclass(config.algo_class, CheckpointedAlgorithm):
        config.warm_start(buffer_episodes=0)  # nothing is imitated any more
    return Evaluation(folder=folder, config=config, checked=checked)


def _choose_split(config: Any, split: str) -> None:
    """Evaluation plays held-out tasks; `options` of `reset` may say otherwise, and go first."""
    if "simulation" not in sections(type(config)):
        raise RLlibVLMError(f"--split: {type(config).__name__} has no splits to choose from")
    check_split(config.env, split)
    options = {**config.reset_options, "split": split}
    config.evaluation(evaluation_config={**(config.evaluation_config or {}), "reset_options": options})


def _stored_config(folder: Path) -> Any:
    """The AlgorithmConfig RLlib stored with the checkpoint (`from_checkpoint` reads the same file)."""
    file = folder / Algorithm.CLASS_AND_CTOR_ARGS_FILE_NAME
    try:
        with file.open("rb") as stream:
            stored = pickle.load(stream)
        arguments, keywords = stored["ctor_args_and_kwargs"]
        algorithm_class = stored["class"]
        config = keywords["config"] if "config" in keywords else next(iter(arguments))
    except Exception as error:  # pickles of something else raise anything
        raise RLlibVLMError(f"{file} is not an algorithm's checkpoint of this RLlib: {error!r}") from error
    if isinstance(config, dict):  # Tune hands its trials plain dicts
        config = algorithm_class.get_default_config().update_from_dict(config)
    return config.copy(copy_frozen=False)


def _plain(value: Any) -> Any:
    """NumPy's numbers as JSON's."""
    return value.item() if hasattr(value, "item") else value
