"""A checkpoint -> the figures of its policy on fresh episodes."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.tune.utils.util import flatten_dict

from rllib_vlm.algorithms.description import DESCRIPTION
from rllib_vlm.algorithms.manifest import MANIFEST, require_whole
from rllib_vlm.algorithms.validation import check_split
from rllib_vlm.config.document import Document, Mark
from rllib_vlm.config.overrides import parse_overrides
from rllib_vlm.config.sections import apply_sections, sections
from rllib_vlm.errors import ConfigErrors, RLlibVLMError


def evaluate_checkpoint(
    folder: Path, *, episodes: int | None = None, split: str | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Restores the algorithm in `folder`, evaluates it once, and returns flat metrics by name; Ray must be up.

    Raises:
        ConfigErrors: an override the algorithm's config does not take.
        CheckpointError: the checkpoint is not as it was written.
        RLlibVLMError: the folder holds no algorithm of this RLlib.
    """
    if (folder / DESCRIPTION).exists() or (folder / MANIFEST).exists():  # one of ours, and not RLlib's own
        require_whole(folder)
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
    algorithm = Algorithm.from_checkpoint(str(folder), config=config)
    try:
        results = algorithm.evaluate()
    finally:
        algorithm.stop()
    flat = flatten_dict(results)
    return {k: _plain(v) for k, v in sorted(flat.items()) if isinstance(v, Real | str)}


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
    except (OSError, pickle.UnpicklingError, KeyError, ImportError, AttributeError, EOFError) as error:
        raise RLlibVLMError(f"{file} is not an algorithm's checkpoint of this RLlib: {error}") from error
    config = keywords["config"] if "config" in keywords else next(iter(arguments))
    if isinstance(config, dict):  # Tune hands its trials plain dicts
        config = algorithm_class.get_default_config().update_from_dict(config)
    return config.copy(copy_frozen=False)


def _plain(value: Any) -> Any:
    """NumPy's numbers as JSON's."""
    return value.item() if hasattr(value, "item") else value
