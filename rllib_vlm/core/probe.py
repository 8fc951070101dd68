"""Whether what samples and what learns are the same policy: both say how likely the same tokens are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from rllib_vlm.batching.packing import pack, to_torch, unpack_column
from rllib_vlm.batching.rows import rows_from_trajectory
from rllib_vlm.core.columns import VLMColumns
from rllib_vlm.types import Completion, ParsedAction, Prompt, Trajectory, Turn

Answered = tuple[Prompt, Completion]


@torch.no_grad()
def log_ratio_max(learner: Any, answered: Sequence[Answered]) -> float:
    """Largest |log-probability by the learner's module - the one it was sampled with|, nats.

    Args:
        learner: whose module is asked, in float32.
        answered: prompts and what the sampler answered to them.
    """
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    rows = [
        row for prompt, completion in answered for row in rows_from_trajectory(_one_turn(prompt, completion))
    ]
    if not rows:
        return 0.0
    longest = max(len(row) for row in rows)
    packed = pack(rows, max_tokens=longest)
    tensors = to_torch(packed, next(module.parameters()).device)
    out = module.forward_train(tensors, with_values=False)
    columns = unpack_column(packed, out[VLMColumns.LOGPROBS].float().cpu().numpy())
    sources = np.unique(packed["row_ids"][packed["row_ids"] >= 0])
    gaps = [
        np.abs(column - rows[i].old_logprobs)[rows[i].sampled].max()
        for i, column in zip(sources.tolist(), columns, strict=True)
    ]
    return float(max(gaps))


def _one_turn(prompt: Prompt, completion: Completion) -> Trajectory:
    turn = Turn(prompt=prompt, completion=completion, parsed=ParsedAction(valid=True), reward=0.0)
    return Trajectory(turns=(turn,), group="", terminated=False, truncated=True, success=False)
