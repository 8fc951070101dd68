"""Learner: rows are scored once at the weights an update starts from: values and credit, and log-probs if asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from rllib_vlm import registry
from rllib_vlm.batching.mismatch import MismatchSettings, relearn
from rllib_vlm.batching.rows import Row, rows_from_trajectory, split_by_turn, with_credit
from rllib_vlm.connectors.reference_gaps import k1
from rllib_vlm.core.columns import VLMColumns
from rllib_vlm.core.engines.lockstep import Lockstep
from rllib_vlm.core.reading import Column, read_rows
from rllib_vlm.credit.base import CreditAssigner
from rllib_vlm.types import Completion, ParsedAction, Prompt, Trajectory, Turn

_REFERENCE = "reference"
Reference = Callable[[dict[str, torch.Tensor]], torch.Tensor]  # a packed batch to log-probs [B, L]


class Score(Protocol):
    def __call__(
        self, rows: Sequence[Row], *, values: bool, logprobs: bool, reference: Reference | None = None
    ) -> dict[str, list[Column]]: ...


class ScoreRows(ConnectorV2):
    """Fills `Trajectory.values` and the rows' `old_values`, `advantages` and `returns`; or `old_logprobs` anew.

    Rows are read once, in micro-batches, at the weights the update starts from. A cut episode bootstraps with
    the value of the state after its last turn, which it brings as prompt; without one it bootstraps with 0.
    Estimators of the other stages need no values; where the sampler's log-probs serve, nothing is left to do.

    Args:
        credit: a name of the table `credit`.
        credit_options: of the estimator.
        old_logprobs: "sampler" leaves them as they were sampled; "learner" computes them here.
        mismatch: fields of `MismatchSettings`, for "learner".
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
        old_logprobs: str,
        mismatch: Mapping[str, Any],
        row_tokens: int,
        micro_batch_tokens: int,
    ) -> None:
        super().__init__(input_observation_space, input_action_space)
        self._assign: CreditAssigner = registry.resolve("credit", credit)(**credit_options)
        self._relearns = old_logprobs == "learner"
        self._mismatch = MismatchSettings(**mismatch)
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
        shared_data = {} if shared_data is None else shared_data
        plan = shared_data.get("plan")
        needs_values = self._assign.stage == "learner"
        if not (needs_values or self._relearns) or (plan is not None and not plan.expects_credit):
            return batch
        score = partial(
            self._score,
            module=rl_module[DEFAULT_MODULE_ID].unwrapped(),
            precision="float32" if plan is None else plan.precision,
            lockstep=shared_data.get("lockstep"),
        )
        rows: list[list[Row]] = batch[VLMColumns.ROWS]
        # The driver has charged what it gives credit of.
        price = plan.kl_reward if plan is not None and needs_values else 0.0
        scored = score(
            [row for own in rows for row in own],
            values=needs_values,
            logprobs=self._relearns,
            reference=shared_data[_REFERENCE] if price else None,
        )
        if self._relearns:
            anew, shared_data["gap"] = relearn(
                [row for own in rows for row in own], scored[VLMColumns.LOGPROBS], self._mismatch
            )
            following = iter(anew)
            batch[VLMColumns.ROWS] = rows = [[next(following) for _ in own] for own in rows]
        if price:
            shared_data["kl"] = self._charge(batch, rows, scored[_REFERENCE], price)
        if needs_values:
            self._give_credit(batch, rows, iter(scored[VLMColumns.VALUES]), score)
        return batch

    @staticmethod
    def _charge(
        batch: dict[str, Any], rows: list[list[Row]], reference: Sequence[Column], price: float
    ) -> float:
        """Rewards each token with -price * k1, k1 = its log-prob less the reference's; gives the mean of k1."""
        following = iter(reference)
        trajectories, gaps = [], []
        for trajectory, own in zip(batch[VLMColumns.TRAJECTORIES], rows, strict=True):
            found = [k1(row, next(following)) for row in own]
            gaps += [gap[row.sampled] for gap, row in zip(found, own, strict=True)]
            charged = [-price * gap for gap in found]
            split = split_by_turn(own, charged, len(trajectory.turns))
            trajectories.append(replace(trajectory, token_rewards=split))
        batch[VLMColumns.TRAJECTORIES] = trajectories
        return float(np.concatenate(gaps).mean()) if gaps else 0.0

    def _give_credit(
        self, batch: dict[str, Any], rows: list[list[Row]], values: Iterator[Column], score: Score
    ) -> None:
        trajectories: list[Trajectory] = batch[VLMColumns.TRAJECTORIES]
        bootstraps = self._bootstraps(trajectories, batch[VLMColumns.FINAL_PROMPTS], score)
        filled: list[Trajectory] = []
        valued: list[list[Row]] = []
        for trajectory, own, bootstrap in zip(trajectories, rows, bootstraps, strict=True):
            of_rows = [next(values) for _ in own]
            of_turns = split_by_turn(own, of_rows, len(trajectory.turns))
            filled.append(replace(trajectory, values=of_turns, bootstrap_value=bootstrap))
            valued.append([replace(row, old_values=v) for row, v in zip(own, of_rows, strict=True)])
        credit = self._assign(filled)
        batch[VLMColumns.TRAJECTORIES] = filled
        batch[VLMColumns.TRAJECTORY_CREDIT] = credit
        batch[VLMColumns.ROWS] = [with_credit(own, c) for own, c in zip(valued, credit, strict=True)]

    @staticmethod
    def _bootstraps(
        trajectories: Sequence[Trajectory], prompts: Sequence[Prompt | None], score: Score
    ) -> list[float]:
        """The value after the last turn, 0 where an episode terminated or brings no prompt."""
        ask = [
            i for i, (t, p) in enumerate(zip(trajectories, prompts, strict=True)) if p and not t.terminated
        ]
        rows = [_state_row(prompt) for i in ask if (prompt := prompts[i])]
        bootstraps = [0.0] * len(trajectories)
        columns = score(rows, values=True, logprobs=False)[VLMColumns.VALUES]
        for i, column in zip(ask, columns, strict=True):
            bootstraps[i] = float(column[-1])
        return bootstraps

    def _score(
        self,
        rows: Sequence[Row],
        *,
        module: Any,
        precision: str,
        values: bool,
        logprobs: bool,
        reference: Reference | None = None,
        lockstep: Lockstep | None = None,
    ) -> dict[str, list[Column]]:
        """[L] per row, in order, of each of what is asked for."""
        wanted = [VLMColumns.VALUES] * values + [VLMColumns.LOGPROBS] * logprobs
        wanted += [_REFERENCE] * (reference is not None)

        def read(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            if logprobs:
                out = module.forward_train(tensors, with_values=values, precision=precision)
            else:
                out = {VLMColumns.VALUES: module.compute_values(tensors, precision=precision)}
            return out if reference is None else {**out, _REFERENCE: reference(tensors)}

        return read_rows(
            rows,
            read,
            wanted,
            device=next(module.parameters()).device,
            row_tokens=self._row_tokens if module.family.packs else None,
            micro_batch_tokens=self._micro_batch_tokens,
            lockstep=lockstep,
        )


def _state_row(prompt: Prompt) -> Row:
    """A row whose single sampled token stands for the state after `prompt`; which token does not matter."""
    completion = Completion(
        token_ids=np.zeros(1, np.int64),
        logprobs=np.zeros(1, np.float32),
        policy_version=0,
        finish_reason="stop",
    )
    turn = Turn(prompt=prompt, completion=completion, parsed=ParsedAction(valid=False), reward=0.0)
    state = Trajectory(turns=(turn,), group="", terminated=False, truncated=True, success=False)
    return rows_from_trajectory(state)[0]
