"""What an exported policy says of itself: `rllib_vlm.json` for programs, a model card for people.

All of it is read from JSON: what the checkpoint says (`policy.json`), for older ones what the trial's folder says
(`params.json`), and the trial's `results.json`. What is in none of them is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rllib_vlm import __version__
from rllib_vlm.algorithms.agent_config import PROMPTING
from rllib_vlm.algorithms.description import DESCRIPTION, GENERATION
from rllib_vlm.callbacks.report import RESULTS_FILE
from rllib_vlm.models.hf_directory import ModelSummary

SETTINGS_FILE = "rllib_vlm.json"
PARAMETERS_FILE = "params.json"  # Tune's, in a trial's folder
_FORMAT = 1  # of that file
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_EVALUATIONS = {
    "warm_start": "warm_start_end",
    "final": "final",
}  # of `results.json`: what its `details` call them

_CARD = """---
{about}
---

# {title}

A vision-language policy, trained with rllib_vlm. The weights are safetensors; whatever opens Hugging Face directories
of type `{model_type}` opens this one.

| | |
|---|---|
{table}

## Use

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(".")
processor = AutoProcessor.from_pretrained(".")  # needs torchvision (pip install torchvision)
messages = ...  # the conversation so far, in the form that is told below
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
answer = model.generate(**inputs, {generation}, do_sample=False)
```

{prompts}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a policy comes from; None and empty mappings where nobody says."""

    algorithm: str | None
    updates: tuple[int, int] | None  # of imitation, of reinforcement learning
    config: Mapping[str, Any]  # settings by the names of the algorithm's configuration
    results: Mapping[str, Any]  # the run's `results.json`
    date: str

    @property
    def model(self) -> Mapping[str, Any]:
        """`rl_module.model_config`."""
        return _mapping(self.config.get("_model_config"))


def read_origin(checkpoint: Path) -> Origin:
    """Everything that JSON files in and around a checkpoint tell."""
    near = (checkpoint.parent, checkpoint.parent.parent)
    trial = next((folder for folder in near if (folder / PARAMETERS_FILE).is_file()), None)
    told = _read(checkpoint / DESCRIPTION)
    config = _mapping(told.get("config")) or (_read(trial / PARAMETERS_FILE) if trial else {})
    algorithm = told.get("algorithm")
    if algorithm is None and trial is not None:
        # A trial's folder is called after its algorithm, its environment and its id.
        before, found, _ = trial.name.partition(f"_{config.get('env')}_")
        algorithm = before if found else None
    imitation, reinforcement = told.get("warm_start_updates"), told.get("updates")
    counted = isinstance(imitation, int) and isinstance(reinforcement, int)
    written = (checkpoint / "rllib_checkpoint.json").stat().st_mtime
    return Origin(
        algorithm=algorithm,
        updates=(imitation, reinforcement) if counted else None,  # type: ignore[arg-type]
        config=config,
        results=_read(trial / RESULTS_FILE) if trial else {},
        date=datetime.fromtimestamp(written, UTC).date().isoformat(),
    )


def settings(origin: Origin, *, template: str | None, has_critic: bool) -> dict[str, Any]:
    """What `rllib_vlm.json` holds: all that makes the prompts the policy was trained on; null is unknown.

    Args:
        template: of the system prompt, as the file is to call it.
        has_critic: there is a value head.
    """
    config, updates = origin.config, origin.updates
    prompting = {name: config[name] for name in PROMPTING if name in config}
    return {
        "format": _FORMAT,
        "rllib_vlm": __version__,
        "algorithm": origin.algorithm,
        "environment": {name: config.get(name) for name in ("env", "env_config")} if config else None,
        "seed": config.get("seed"),
        "updates": {"warm_start": updates[0], "reinforcement_learning": updates[1]} if updates else None,
        "prompting": {**prompting, "template": template} if prompting else None,
        "generation": {name: config[name] for name in GENERATION if name in config} or None,
        "value_head": origin.model.get("value_head", True) if has_critic else None,
    }


def card(origin: Origin, model: ModelSummary, told: Mapping[str, Any]) -> str:
    """The model card, Markdown.

    Args:
        model: what its files say.
        told: what `settings` made.
    """
    about: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    base = origin.model.get("checkpoint")
    if _is_hub_name(base):
        about["base_model"] = base
    about["tags"] = ["rllib_vlm", "reinforcement-learning"]
    title = " on ".join(_text(name) for name in (origin.algorithm, origin.config.get("env")) if name)
    return _CARD.format(
        about="\n".join(f"{key}: {json.dumps(value)}" for key, value in about.items()),
        title=title or "A policy of unknown origin",
        model_type=model.model_type,
        table="\n".join(f"| {key} | {value} |" for key, value in _rows(origin, model)),
        generation=_arguments(_mapping(told["generation"])),
        prompts=_prompts(told),
    )


def _rows(origin: Origin, model: ModelSummary) -> Iterator[tuple[str, str]]:
    config, base = origin.config, origin.model.get("checkpoint")
    if base is not None:
        # Of a folder its name alone: a card is for others, who need not know this machine.
        public = _is_hub_name(base) or str(base).startswith("package:")
        yield "base model", _text(base if public else Path(str(base)).name)
    elif origin.model.get("size") is not None:
        yield "base model", f"none: random weights of size {_text(origin.model['size'])}"
    yield "size", f"{model.parameters:,} parameters, {model.dtype}"
    if origin.algorithm is not None:
        yield "algorithm", _text(origin.algorithm)
    for key, name in (("environment", "env"), ("seed", "seed")):
        if config.get(name) is not None:
            yield key, _text(config[name])
    if origin.updates is not None:
        yield "updates", f"{origin.updates[0]} of imitation, {origin.updates[1]} of reinforcement learning"
    yield "date", origin.date
    for name, detailed in _EVALUATIONS.items():
        record = _mapping(origin.results.get(name))
        detail = _mapping(_mapping(origin.results.get("details")).get(detailed))
        figures = _figures(record, detail.get("num_updates"))
        if figures:
            yield "held-out success of the run", figures + _drawn(config)


def _figures(record: Mapping[str, Any], updates: Any) -> str:
    """An evaluation in words; nothing where its record has no rate."""
    success, interval = record.get("success"), record.get("interval")
    if not _is_number(success):
        return ""
    parts = [f"{success:.1%}"]
    if isinstance(interval, list) and len(interval) == 2 and all(map(_is_number, interval)):
        parts[0] += f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
    if _is_number(record.get("episodes")):
        parts.append(f"{record['episodes']} episodes")
    if _is_number(updates):
        parts.append(f"after {updates} updates of reinforcement learning")
    return ", ".join(parts)


def _drawn(config: Mapping[str, Any]) -> str:
    """How answers were drawn in evaluations; nothing where nobody says."""
    own = _mapping(config.get("evaluation_config"))
    temperature = own.get("temperature", config.get("temperature"))
    if not _is_number(temperature):
        return ""
    return f", temperature {temperature:g}" if temperature else ", greedy"


def _arguments(generation: Mapping[str, Any]) -> str:
    """Of transformers' `generate`, for answers as long as the run's."""
    arguments = f"max_new_tokens={generation.get('max_new_tokens', 64)}"
    if generation.get("stop"):
        arguments += f", stop_strings={list(generation['stop'])!r}, tokenizer=processor.tokenizer"
    return arguments


def _prompts(told: Mapping[str, Any]) -> str:
    if told["prompting"] is None:
        return "Which prompts it was trained on is not known."
    sections = {
        "rl_module": {"model_config": {"checkpoint": "THIS_FOLDER"}},
        **{key: told[key] for key in ("prompting", "generation") if told[key]},
    }
    lines = [f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in sections.items()]
    return "\n".join(
        [
            "It knows the prompts it was trained on and no others.",
            f"`{SETTINGS_FILE}` says how they are made; in an experiment file of rllib_vlm:",
            "",
            "```yaml",
            "config:",
            *lines,
            "```",
        ]
    )


def _is_hub_name(name: object) -> bool:
    """As the loading of models has it: "runs/final" beside a folder "runs" is that folder."""
    return isinstance(name, str) and bool(_HUB_NAME.fullmatch(name)) and not Path(name).parent.is_dir()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: object) -> str:
    """A value in one cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _read(file: Path) -> Mapping[str, Any]:
    """A file's mapping; nothing where it is missing, torn or something else."""
    try:
        return _mapping(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
