"""A checkpoint -> a Hugging Face directory of its policy, for use without RLlib.

Of the checkpoint, only JSON, text and safetensors are read; nothing is ever unpickled. What is written holds no
pickle either. The directory appears whole or not at all: it is filled under another name beside its place, brought
to disk, and renamed.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ray.rllib.core import (
    COMPONENT_LEARNER,
    COMPONENT_LEARNER_GROUP,
    COMPONENT_RL_MODULE,
    DEFAULT_MODULE_ID,
)

from rllib_vlm import registry
from rllib_vlm.algorithms.manifest import MANIFEST, damage, in_short
from rllib_vlm.config.checkpoints import MARK, find_checkpoint
from rllib_vlm.config.model_card import PARAMETERS_FILE, SETTINGS_FILE, Origin, card, read_origin, settings
from rllib_vlm.core.rl_module import HF_DIRECTORY, VALUE_HEAD_FILE
from rllib_vlm.errors import CheckpointError, ModelError, RLlibVLMError
from rllib_vlm.files import write_json
from rllib_vlm.models.hf_directory import ModelSummary, check_directory, check_safetensors

CARD_FILE = "README.md"
TEMPLATE_FILE = "template.md"  # a system prompt's template that is no packaged one
_COPIED = frozenset({".json", ".safetensors", ".jinja", ".txt"})
_MODULE = Path(COMPONENT_LEARNER_GROUP, COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID)


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What was written, from where, and what one should know of it."""

    checkpoint: Path
    directory: Path
    model: ModelSummary
    notes: tuple[str, ...]


def export(checkpoint: str | Path, directory: str | Path, *, overwrite: bool = False) -> Export:
    """Writes the policy of a checkpoint as a directory that plain transformers opens, with a model card.

    Args:
        checkpoint: a checkpoint, or a trial's or run's folder, whose newest one is taken.
        directory: made, with the folders it lies in.
        overwrite: a directory that is not empty is replaced, with everything in it.

    Raises:
        CheckpointError: the checkpoint is torn; the newest whole one of its run is named.
        RLlibVLMError: there is no checkpoint; the directory is not empty or cannot be written.
    """
    try:
        source = find_checkpoint(checkpoint)
        target = _place(directory, source, overwrite=overwrite)
        model = _whole_or_refuse(source)
        return _write(source, target, model)
    except OSError as error:
        # Of a copy that failed, the first name is the one that was read, whichever it was that failed.
        where = f" ({error.filename})" if error.filename and error.filename2 is None else ""
        reason = f"{error.strerror or error}{where}"
        raise RLlibVLMError(f"{checkpoint} cannot be exported to {directory}: {reason}") from error


def _write(source: Path, target: Path, model: ModelSummary) -> Export:
    origin = read_origin(source)
    notes = []
    if not (source / MANIFEST).is_file():
        notes.append(
            f"the checkpoint has no {MANIFEST}: whether its weights are as they were written cannot be told"
        )
    if not origin.config:
        notes.append(
            "no settings were found beside the checkpoint: which prompts it was trained on is not known"
        )
    template, own_template = _template(origin)
    if template is not None and template.endswith(".md") and own_template is None:
        notes.append(f"the template {template} is not on this machine: its prompts cannot be made without it")
    family = registry.resolve("models", origin.model.get("family", model.model_type))
    with _filled(target) as folder:
        for file in (source / _MODULE / HF_DIRECTORY).iterdir():
            if file.suffix in _COPIED:
                shutil.copyfile(file, folder / file.name)
        # Those of older checkpoints do not ban what this package never samples.
        family.generation_config(folder).save_pretrained(folder)
        has_critic = (source / _MODULE / VALUE_HEAD_FILE).is_file()
        if has_critic:
            shutil.copyfile(source / _MODULE / VALUE_HEAD_FILE, folder / VALUE_HEAD_FILE)
        if own_template is not None:
            shutil.copyfile(own_template, folder / TEMPLATE_FILE)
        told = settings(
            origin, template=TEMPLATE_FILE if own_template is not None else template, has_critic=has_critic
        )
        write_json(folder / SETTINGS_FILE, told)
        (folder / CARD_FILE).write_text(card(origin, model, told), encoding="utf-8")
    return Export(checkpoint=source, directory=target, model=model, notes=tuple(notes))


def _template(origin: Origin) -> tuple[str | None, Path | None]:
    """The setting, and where it is a file of the user's own that is still there, the file."""
    template = origin.config.get("template")
    if not isinstance(template, str):
        return None, None
    own = template.endswith(".md") and Path(template).is_file()
    return template, Path(template) if own else None


# The checkpoint.


def _whole_or_refuse(checkpoint: Path) -> ModelSummary:
    try:
        return _check(checkpoint)
    except (CheckpointError, ModelError) as error:
        raise _torn(checkpoint, error) from error


def _check(checkpoint: Path) -> ModelSummary:
    """Refuses a checkpoint that cannot be exported; says nothing but why."""
    if not (checkpoint / MARK).is_file():
        raise CheckpointError(f"{MARK} is missing")
    found = damage(checkpoint) if (checkpoint / MANIFEST).is_file() else []
    if found:
        raise CheckpointError(in_short(found))
    module = checkpoint / _MODULE
    if (module / VALUE_HEAD_FILE).exists():
        check_safetensors(module / VALUE_HEAD_FILE)
    return check_directory(module / HF_DIRECTORY)


def _torn(checkpoint: Path, error: Exception) -> CheckpointError:
    other = _newest_whole(checkpoint)
    offer = f" The newest whole one of its run is {other}" if other is not None else ""
    return CheckpointError(f"{checkpoint} cannot be exported: {error}.{offer}")


def _newest_whole(torn: Path) -> Path | None:
    """Of the same trial, or else of the same run."""
    trial = torn.parent
    others = sorted(trial.glob("checkpoint_*"), reverse=True)
    if (trial / PARAMETERS_FILE).is_file():
        elsewhere = [folder for folder in trial.parent.glob("*/checkpoint_*") if folder.parent != trial]
        others += sorted(elsewhere, key=lambda d: (d.parent.stat().st_mtime, d.name), reverse=True)
    for other in others:
        if other != torn and other.is_dir():
            with suppress(CheckpointError, ModelError):
                _check(other)
                return other
    return None


# The directory.


def _place(directory: str | Path, source: Path, *, overwrite: bool) -> Path:
    """Where the export goes; what is there and must not be lost is refused."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(directory)):
        raise RLlibVLMError(f"{directory}: an export is written to a folder of this machine")
    try:
        target = Path(directory).resolve()
        kept = {source: "the checkpoint", Path.cwd(): "the current folder", Path.home(): "your home"}
    except RuntimeError as error:  # a link to itself
        raise RLlibVLMError(f"{directory}: {error}") from error
    if not target.exists():
        return target
    if not target.is_dir():
        raise RLlibVLMError(f"{target} is a file; give a folder")
    for folder, name in kept.items():
        if target == folder or target in folder.parents:
            raise RLlibVLMError(f"{target} holds {name} and cannot be replaced; give another folder")
    if not overwrite and any(target.iterdir()):
        raise RLlibVLMError(
            f"{target} is not empty; give another folder, or replace it and all that is in it: --overwrite"
        )
    return target


@contextmanager
def _filled(target: Path) -> Iterator[Path]:
    """A folder to fill, which is `target` in the end, or leaves nothing behind where anything goes wrong."""
    made = [folder for folder in target.parents if not folder.exists()]
    staging, old = (target.parent / f".{uuid.uuid4().hex}" for _ in range(2))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
        yield staging
        for path in staging.iterdir():
            _to_disk(path)
        _to_disk(staging)
        _swap(staging, target, old)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise
    _to_disk(target.parent)
    shutil.rmtree(old, ignore_errors=True)
    if old.exists():
        raise RLlibVLMError(
            f"{target} is written; what was there before could not be removed: it is in {old}"
        )


def _swap(staging: Path, target: Path, old: Path) -> None:
    """Puts `staging` where `target` is, which is moved to `old` if it is a folder with something in it."""
    replaces = target.is_dir() and any(target.iterdir())
    if replaces:
        target.rename(old)
    try:
        staging.rename(target)
    except BaseException:
        if replaces:
            old.rename(target)
        raise


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems cannot do it for folders
            raise
    finally:
        os.close(descriptor)
