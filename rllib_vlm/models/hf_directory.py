"""A model's Hugging Face directory on disk: what it must hold, and whether it is whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.utils import is_accelerate_available, logging

from rllib_vlm.errors import ModelError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CHAT_TEMPLATE = "chat_template.jinja"
_TOKENIZER = "tokenizer_config.json"
_JSON = ("config.json", _TOKENIZER, "tokenizer.json", "preprocessor_config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary:
    """What the files say of their model."""

    model_type: str
    parameters: int
    dtype: str


def check_directory(directory: Path) -> ModelSummary:
    """Refuses a directory that plain transformers could not open, or could only fill up with random weights.

    Nothing is unpickled, no code of the directory runs, nothing is fetched.

    Raises:
        ModelError: what is missing or broken.
    """
    if not directory.is_dir():
        raise ModelError(f"{directory.name}/ is missing")
    contents = {name: _read_json(directory / name) for name in _JSON}
    if not (directory / CHAT_TEMPLATE).is_file() and not contents[_TOKENIZER].get("chat_template"):
        raise ModelError(f"{CHAT_TEMPLATE} is missing")
    for file in _weights(directory):
        check_safetensors(file)
    return _try_to_open(directory)


def check_safetensors(file: Path) -> None:
    """Refuses a file whose header cannot be read, or that is shorter or longer than its header says.

    Raises:
        ModelError: says which of these.
    """
    try:
        with safe_open(file, "numpy"):
            pass
    except FileNotFoundError as error:
        raise ModelError(f"{file.name} is missing") from error
    except SafetensorError as error:
        raise ModelError(f"{file.name} is cut off or corrupt: {error}") from error


def _weights(directory: Path) -> list[Path]:
    """The file of weights, or all of them where there is an index."""
    if not (directory / INDEX).is_file():
        return [directory / WEIGHTS]
    shards = _read_json(directory / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(Path(str(name)).name == name for name in shards.values()):
        raise ModelError(f"{INDEX} does not say which file holds which weight")
    return [directory / name for name in sorted(set(shards.values()))]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{file.name} is missing") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file.name} is cut off or no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file.name} holds no mapping")
    return content


def _try_to_open(directory: Path) -> ModelSummary:
    """Lets transformers match weights and tokenizer with the configuration."""
    here_only: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    # The device "meta" holds shapes and no numbers; without accelerate, transformers reads the weights to match them.
    device = "meta" if is_accelerate_available() else None
    try:
        with _silent():
            model, report = AutoModelForImageTextToText.from_pretrained(
                directory,
                device_map=device,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report
                **here_only,
            )
            AutoTokenizer.from_pretrained(directory, **here_only)
    except Exception as error:  # broken files make transformers raise anything
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"transformers cannot open it: {first}") from error
    for problem, what in (("missing_keys", "lack"), ("mismatched_keys", "have another shape of")):
        names = sorted(name if isinstance(name, str) else name[0] for name in report[problem])
        if names:
            raise ModelError(f"the weights {what} {len(names)} of the model's tensors, e.g. {names[0]!r}")
    return ModelSummary(
        model_type=str(model.config.model_type),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
    )


@contextmanager
def _silent() -> Iterator[None]:
    """Without transformers' progress bars and load reports: what is wrong is said once, by us."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
