"""Where a checkpoint lies and whether it is of the family that is to open it; checks that all families share."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from rllib_vlm.errors import ModelError, did_you_mean

PACKAGED = "package:"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTION = ("sdpa", "eager")


def resolve_checkpoint(name: str) -> Path | str:
    """An existing directory, or a hub name; whatever looks like a path never reaches the hub.

    Raises:
        ModelError: a path that does not exist, an unknown packaged model, or neither path nor hub name.
    """
    if name.startswith(PACKAGED):
        return _packaged(name.removeprefix(PACKAGED))
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelError(f"checkpoint {name!r} is a file; give the directory that holds config.json")
    # "runs/final" beside an existing folder "runs" means that folder, not somebody's model.
    if not path.parent.is_dir() and re.fullmatch(r"[A-Za-z0-9][\w-]*(\.[\w-]+)*/[A-Za-z0-9][\w.-]*", name):
        return name
    raise ModelError(
        f"checkpoint directory {str(path.absolute())!r} does not exist.{_nearest_sibling(path)}"
        " A hub name has the form 'org/name'; a model of the package is 'package:<name>'."
    )


def _packaged(name: str) -> Path:
    folder = Path(str(resources.files("rllib_vlm.models"))) / "pretrained"
    shipped = sorted(p.parent.name for p in folder.glob("*/config.json"))
    if name not in shipped:
        raise ModelError(
            f"no model {name!r} comes with the package.{did_you_mean(name, shipped)}"
            f" Shipped: {', '.join(shipped) or '(none)'}."
        )
    return folder / name


def _nearest_sibling(path: Path) -> str:
    parent = path.absolute().parent
    if not parent.is_dir():
        return f" Nor does {str(parent)!r}."
    return did_you_mean(path.name, [p.name for p in parent.iterdir() if p.is_dir()])


def check_architecture(source: Path | str, opens: type[PreTrainedModel]) -> None:
    """Refuses a directory or hub name whose configuration is of another model than the class `opens`.

    Raises:
        ModelError: the directory has no readable config.json, or the model is of another type.
        OSError: the hub has no such model, or cannot be reached.
    """
    if isinstance(source, str):
        _check_type(transformers.AutoConfig.from_pretrained(source).model_type, source, opens)
        return
    file = source / "config.json"
    if not file.is_file():
        inside = ", ".join(sorted(p.name for p in source.iterdir())[:10]) or "nothing"
        raise ModelError(f"checkpoint {str(source)!r} has no config.json; it holds {inside}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{str(file)!r} is not JSON: {error}") from error
    _check_type(values.get("model_type"), str(source), opens, values.get("architectures"))


def _check_type(
    model_type: object, source: str, opens: type[PreTrainedModel], architectures: object = None
) -> None:
    wanted = opens.config_class.model_type
    if model_type != wanted:
        named = ", ".join(map(str, architectures)) if isinstance(architectures, list) else ""
        what = f"{model_type!r} ({named})" if named else f"{model_type!r}"
        raise ModelError(
            f"checkpoint {source!r} is of model type {what}; this family opens {wanted!r} ({opens.__name__})"
        )


def save_config(model: nn.Module, directory: Path) -> None:
    """Writes the `config.json` that `save_pretrained` writes beside the weights, which name and type tell apart."""
    config: Any = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    config.save_pretrained(directory)


def check_choice(key: str, value: str, known: Collection[str]) -> None:
    """Refuses a value that is none of `known`.

    Raises:
        ModelError: names the nearest.
    """
    if value not in known:
        raise ModelError(f"{key} is {value!r}.{did_you_mean(str(value), known)} Known: {', '.join(known)}.")


def check_heads(what: str, size: int, heads_key: str, heads: int, multiple: int) -> None:
    """Refuses a size that cannot be dealt out to heads of a multiple of `multiple` each.

    Raises:
        ModelError: names the nearest size.
    """
    if heads < 1 or size % (heads * multiple):
        raise ModelError(
            f"{what} {size} must be a multiple of {heads_key} {heads}"
            + (f" times {multiple}" if multiple > 1 else "")
            + f"; nearest: {max(1, round(size / (heads * multiple))) * heads * multiple if heads > 0 else size}"
        )


def round_up(value: int, multiple: int) -> int:
    """The next multiple, or `value` itself."""
    return -(-value // multiple) * multiple
