"""Learner: the critic values every state, and estimators that need values give credit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from rllib_vlm import registry
from rllib_vlm.batching.micro import micro_batches
from rllib_vlm.batching.packing import pack, to_torch, unpack_column
from rllib_vlm.batching.rows import Row, rows_from_trajectory, split_by_turn, with_credit
from rllib_vlm.core.columns import VLMColumns
from rllib_vlm.credit.base import CreditAssigner
from rllib_vlm.types import Completion, ParsedAction, Prompt, Trajectory, Turn

_ROWS_AT_A_TIME = 256  # bounds the memory of the images laid out at once


class AttachValues(ConnectorV2):
    """Fills `Trajectory.values` and the rows' `old_values`, `advantages` and `returns`.

    Values are computed in micro-batches, at the weights the update starts from, and once per update.
    A cut episode bootstraps with the value of the state after its last turn, which it brings as
    prompt; without one it bootstraps with 0. Estimators of the driver stage leave nothing to do here.

    Args:
        credit: a name of the table `credit`.
        credit_options: of the estimator.
        row_tokens: longest packed row.
        micro_batch_tokens: positions of one forward pass.
    """

    def __init__(
        self,
        input_observation_space: Any = None,
        input_action_space: Any = None,
        *,
        credit: str,
        credit_options: Mapping[str, Any],
        row_tokens: int,
        micro_batch_tokens: int,
    ) -> None:
        super().__init__(input_observation_space, input_action_space)
        self._assign: CreditAssigner = registry.resolve("credit", credit)(**credit_options)
        self._row_tokens = row_tokens
        self._micro_batch_tokens = micro_batch_tokens

    @override(ConnectorV2)
    def __call__(
        self,
        *,
        rl_module: Any,
        batch: dict[str, Any],
        episodes: list[SingleAgentEpisode],
        shared_data: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        plan = (shared_data or {}).get("plan")
        if self._assign.stage != "learner" or (plan is not None and not plan.expects_credit):
            return batch
        module = rl_module[DEFAULT_MODULE_ID].unwrapped()
        trajectories: list[Trajectory] = batch[VLMColumns.TRAJECTORIES]
        rows: list[list[Row]] = batch[VLMColumns.ROWS]
        precision = "float32" if plan is None else plan.precision
        values_of = partial(self._values, module=module, precision=precision)
        columns = values_of([row for own in rows for row in own])
        bootstraps = self._bootstraps(trajectories, batch[VLMColumns.FINAL_PROMPTS], module, values_of)
        filled: list[Trajectory] = []
        valued: list[list[Row]] = []
        for trajectory, own, bootstrap in zip(trajectories, rows, bootstraps, strict=True):
            of_rows = [next(columns) for _ in own]
            values = split_by_turn(own, of_rows, len(trajectory.turns))
            filled.append(replace(trajectory, values=values, bootstrap_value=bootstrap))
            valued.append([replace(row, old_values=v) for row, v in zip(own, of_rows, strict=True)])
        credit = self._assign(filled)
        batch[VLMColumns.TRAJECTORIES] = filled
        batch[VLMColumns.TRAJECTORY_CREDIT] = credit
        batch[VLMColumns.ROWS] = [with_credit(own, c) for own, c in zip(valued, credit, strict=True)]
        return batch

    def _bootstraps(
        self,
        trajectories: Sequence[Trajectory],
        prompts: Sequence[Prompt | None],
        module: Any,
        values_of: Callable[[Sequence[Row]], Iterator[NDArray[np.float32]]],
    ) -> list[float]:
        """The value after the last turn, 0 where an episode terminated or brings no prompt."""
        ask = [
            i for i, (t, p) in enumerate(zip(trajectories, prompts, strict=True)) if p and not t.terminated
        ]
        rows = [_state_row(prompt, module.family.stop_token_ids[0]) for i in ask if (prompt := prompts[i])]
        bootstraps = [0.0] * len(trajectories)
        for i, column in zip(ask, values_of(rows), strict=True):
            bootstraps[i] = float(column[-1])
        return bootstraps

    @torch.no_grad()
    def _values(self, rows: Sequence[Row], module: Any, precision: str) -> Iterator[NDArray[np.float32]]:
        """[L] per row, in order."""
        device = next(module.parameters()).device
        for start in range(0, len(rows), _ROWS_AT_A_TIME):
            some = rows[start : start + _ROWS_AT_A_TIME]
            packed = pack(some, max_tokens=self._row_tokens)
            found: dict[int, NDArray[np.float32]] = {}
            for piece in micro_batches(packed, max_tokens=self._micro_batch_tokens):
                tensors = to_torch(piece, device)
                values = module.compute_values(tensors, precision=precision).float().cpu().numpy()
                sources = np.unique(piece["row_ids"][piece["row_ids"] >= 0])
                found |= zip(sources.tolist(), unpack_column(piece, values), strict=True)
            for i in range(len(some)):
                yield found[i]


def _state_row(prompt: Prompt, token_id: int) -> Row:
    """A row whose single sampled token stands for the state after `prompt`; which token does not matter."""
    completion = Completion(
        token_ids=np.array([token_id], np.int64),
        logprobs=np.zeros(1, np.float32),
        policy_version=0,
        finish_reason="stop",
    )
    turn = Turn(prompt=prompt, completion=completion, parsed=ParsedAction(valid=False), reward=0.0)
    state = Trajectory(turns=(turn,), group="", terminated=False, truncated=True, success=False)
    return rows_from_trajectory(state)[0]
