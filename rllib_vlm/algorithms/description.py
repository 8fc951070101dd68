"""What a checkpoint says of its own policy, in JSON: how far it was trained, and by which settings it acts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllib_vlm.algorithms.agent_config import PROMPTING
from rllib_vlm.files import write_json

if TYPE_CHECKING:
    from rllib_vlm.algorithms.checkpointing import CheckpointedAlgorithm

DESCRIPTION = "policy.json"
# Attributes of the configuration, as `PROMPTING` holds them; those of Tune's `params.json` have the same names.
GENERATION = ("temperature", "top_p", "max_new_tokens", "stop")
_OTHERS = ("env", "env_config", "seed", "evaluation_config", "_model_config")


def write_description(root: Path, algorithm: CheckpointedAlgorithm) -> None:
    """Writes `policy.json` into the checkpoint at `root`.

    Raises:
        OSError: the disk is full or fails.
    """
    state, config = algorithm.run_state, vars(algorithm.config)
    description: dict[str, Any] = {
        "algorithm": type(algorithm).__name__,
        "training_iteration": algorithm.iteration,
        "phase": state.phase,
        "warm_start_updates": state.warm_start_updates,
        "updates": state.updates,
        "config": {name: config[name] for name in (*PROMPTING, *GENERATION, *_OTHERS)},
    }
    # Classes and other objects among the settings as text: this is to be read, not to be built from.
    write_json(root / DESCRIPTION, json.loads(json.dumps(description, default=str, skipkeys=True)))
