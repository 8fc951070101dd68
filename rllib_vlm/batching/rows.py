"""Rows: what a learner reads. THE place of the shift between a token and the state that predicts it.

Two rules, here and nowhere else:

1. Every per-token column is aligned to the token itself: index t of `loss_mask`, `old_logprobs`,
   `advantages`, `returns`, `old_values` is about `token_ids[t]`.
2. The hidden state that predicts token t (its log-prob, and the value of the state before it) stands
   at t - 1. `gather_predicting` reads it, `scatter_to_tokens` brings the result back to t.

A prompt of two tokens and a completion of two, after which the environment says one token and the
model two more (one row, because the second prompt repeats the first turn exactly)::

    token_ids   [ 1, 40,  61,  2,  52,  62,  2]
    turn_ids    [-1, -1,   0,  0,  -1,   1,  1]     -1 was not sampled
    loss_mask   [ .   .    x   x    .    x   x]
    turn_ends   [ .   .    .   x    .    .   x]
    predicted by position:  1   2         4   5

Legend: L = tokens of a row, T = tokens of one completion, B rows of a batch, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rllib_vlm.errors import RLlibVLMError
from rllib_vlm.types import Image, TokenCredit, Trajectory, Turn

if TYPE_CHECKING:
    from torch import Tensor


NUM_LABELS = 6  # rows of `Prompt.shown`


@dataclass(frozen=True, slots=True)
class Label:
    """A label that consists of words."""

    rows: slice  # of `Prompt.shown`, in which its tokens stand
    words: str  # the column of a batch that lists what they are chosen among


NAME = Label(slice(0, 2), "name_words")
PLACE = Label(slice(2, 5), "place_words")
NAMED = 5  # the row that says whether the instruction names the thing


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sequence with everything the losses need, off the batch."""

    token_ids: NDArray[np.int64]  # [L]
    loss_mask: NDArray[np.bool_]  # [L] sampled tokens the policy learns from
    value_mask: NDArray[np.bool_]  # [L] sampled tokens the critic learns from
    loss_weights: NDArray[np.float32]  # [L] of the policy's loss; 1 unless parts of answers weigh differently
    old_logprobs: NDArray[np.float32]  # [L] nats, when sampled; 0 off the completions, as all below
    advantages: NDArray[np.float32]  # [L]
    returns: NDArray[np.float32]  # [L]
    old_values: NDArray[np.float32]  # [L]
    policy_versions: NDArray[np.int64]  # [L] weights that sampled the token; -1 was not sampled
    turn_ids: NDArray[np.int64]  # [L] turn of the trajectory that sampled the token; -1 was not sampled
    turn_ends: NDArray[np.bool_]  # [L] last token of each completion
    grounding_mask: NDArray[np.bool_]  # [L] image tokens of which a demonstration says what they show
    referring_mask: NDArray[np.bool_]  # [L] those of which it says whether the instruction names that
    labels: NDArray[np.int64]  # [L, 6] as in `Prompt.shown`; -1 elsewhere
    images: tuple[Image, ...]  # in the order of their placeholders

    def __len__(self) -> int:
        """L, the tokens of prompt and completions together."""
        return len(self.token_ids)

    @property
    def sampled(self) -> NDArray[np.bool_]:
        """[L] tokens the model sampled, whether or not the losses count them."""
        return self.turn_ids >= 0


def rows_from_trajectory(
    trajectory: Trajectory,
    credit: Sequence[TokenCredit] | None = None,
    *,
    max_row_tokens: int | None = None,
    mask_truncated: bool = False,
) -> list[Row]:
    """The rows of an episode, in order.

    One row per turn, except that a turn whose prompt repeats the row so far exactly (all its tokens,
    then anything; and its images first) joins that row: an episode with its full history in the
    prompt becomes one row and is read once instead of once per turn. A row in which nothing was sampled
    (an aborted generation) is left out.

    Args:
        trajectory: the episode. Its `values`, where filled, become `old_values`.
        credit: one entry per turn; None leaves `advantages` and `returns` at 0 until `with_credit`.
        max_row_tokens: what a row may hold. Joining turns never makes a row longer than its last turn alone.
        mask_truncated: leave turns that ended at the token limit out of `loss_mask` (their answers were
            cut by us). They stay in `value_mask`, because their states are real.

    Raises:
        RLlibVLMError: a prompt without tokens (nothing predicts the first sampled token), a single turn
            longer than `max_row_tokens`, or log-probs or credit of another length than the tokens.
    """
    spans: list[list[int]] = []
    so_far = np.zeros(0, np.int64)
    images: tuple[Image, ...] = ()
    for n, turn in enumerate(trajectory.turns):
        _check(turn, n, max_row_tokens)
        prompt = turn.prompt.token_ids
        joins = (
            bool(spans)
            and len(prompt) >= len(so_far)
            and np.array_equal(prompt[: len(so_far)], so_far)
            and _same_images(turn.prompt.images[: len(images)], images)
        )
        if joins:
            spans[-1].append(n)
        else:
            spans.append([n])
        so_far = np.concatenate([prompt, turn.completion.token_ids])
        images = turn.prompt.images
    rows = [_row(trajectory, span, mask_truncated) for span in spans]
    rows = [row for row in rows if row.sampled.any()]
    return rows if credit is None else with_credit(rows, credit)


def with_credit(rows: Sequence[Row], credit: Sequence[TokenCredit]) -> list[Row]:
    """The rows of one trajectory with `advantages`, `returns` and `value_mask` from its credit, one per turn.

    Raises:
        RLlibVLMError: credit of another number of tokens than the turn sampled.
    """
    filled = []
    for row in rows:
        advantages, returns = np.zeros(len(row), np.float32), np.zeros(len(row), np.float32)
        value_mask = row.sampled
        for turn, where in _turn_slices(row):
            given = credit[turn] if turn < len(credit) else None
            if given is None or len(given.advantages) != where.stop - where.start:
                found = "no credit" if given is None else f"credit of {len(given.advantages)} tokens"
                raise RLlibVLMError(
                    f"Turn {turn} sampled {where.stop - where.start} tokens and has {found}. Credit must "
                    "come from the trajectory the rows were made of, one entry per turn."
                )
            advantages[where], returns[where] = given.advantages, given.returns
            if given.value_mask is not None:
                value_mask[where] = given.value_mask
        filled.append(replace(row, advantages=advantages, returns=returns, value_mask=value_mask))
    return filled


def with_weights(rows: Sequence[Row], weights: Sequence[NDArray[np.float32]]) -> list[Row]:
    """The rows of one trajectory with `loss_weights`, given per turn; tokens of weight 0 leave `loss_mask`."""
    weighed = []
    for row in rows:
        own = row.loss_weights.copy()
        for turn, where in _turn_slices(row):
            own[where] = weights[turn]
        weighed.append(replace(row, loss_weights=own, loss_mask=row.loss_mask & (own != 0.0)))
    return weighed


def split_by_turn(
    rows: Sequence[Row], columns: Sequence[NDArray[np.float32]], turns: int
) -> tuple[NDArray[np.float32], ...]:
    """Per-token columns of a trajectory's rows, cut back into its turns: `Trajectory.values` from a critic.

    Args:
        rows: all rows of one trajectory.
        columns: one [L] per row, aligned to tokens.
        turns: number of turns; those without tokens get an empty array.
    """
    out = [np.zeros(0, np.float32)] * turns
    for row, column in zip(rows, columns, strict=True):
        for turn, where in _turn_slices(row):
            out[turn] = np.asarray(column[where], np.float32)
    return tuple(out)


def gather_predicting(hidden: Tensor, mask: Tensor) -> Tensor:
    """[N, D] hidden states that predict the N tokens where `mask` is true, row by row.

    The first token of a row, and of each packed segment, has no state that predicts it: rows start
    with a prompt, so no mask made here is true there.

    Args:
        hidden: [B, L, D].
        mask: bool [B, L], over tokens. `token_ids[mask]` are the N tokens, in the same order.
    """
    return hidden[:, :-1][mask[:, 1:]]


def predicting(mask: Tensor) -> Tensor:
    """The positions, bool [B, L], whose states `gather_predicting` gathers for the tokens where `mask` is true."""
    found = mask.roll(-1, 1)
    found[:, -1:] = False
    return found


def scatter_to_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """[B, L] with `values` [N] at the tokens where `mask` is true and 0 elsewhere; keeps the gradient."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def _row(trajectory: Trajectory, span: Sequence[int], mask_truncated: bool) -> Row:
    """The row of the turns `span`, whose last prompt contains all that came before."""
    final = trajectory.turns[span[-1]]
    token_ids = np.concatenate([final.prompt.token_ids, final.completion.token_ids]).astype(np.int64)
    n = len(token_ids)
    loss_mask, turn_ends = np.zeros(n, bool), np.zeros(n, bool)
    old_logprobs, old_values = np.zeros(n, np.float32), np.zeros(n, np.float32)
    versions, turn_ids = np.full(n, -1, np.int64), np.full(n, -1, np.int64)
    for k in span:
        turn = trajectory.turns[k]
        completion = turn.completion
        start = len(turn.prompt.token_ids)
        end = start + len(completion.token_ids)
        if end == start:
            continue
        loss_mask[start:end] = not (mask_truncated and completion.finish_reason == "length")
        old_logprobs[start:end] = completion.logprobs
        versions[start:end] = completion.policy_version
        turn_ids[start:end] = k
        turn_ends[end - 1] = True
        if trajectory.values:
            old_values[start:end] = trajectory.values[k]
    labels = np.full((n, NUM_LABELS), -1, np.int64)
    if final.prompt.shown is not None:
        labels[: final.prompt.shown.shape[1]] = final.prompt.shown.T
    return Row(
        token_ids=token_ids,
        loss_mask=loss_mask,
        value_mask=turn_ids >= 0,
        loss_weights=np.ones(n, np.float32),
        old_logprobs=old_logprobs,
        advantages=np.zeros(n, np.float32),
        returns=np.zeros(n, np.float32),
        old_values=old_values,
        policy_versions=versions,
        turn_ids=turn_ids,
        turn_ends=turn_ends,
        grounding_mask=labels[:, 0] >= 0,
        referring_mask=labels[:, -1] >= 0,
        labels=labels,
        images=final.prompt.images,
    )


def _turn_slices(row: Row) -> list[tuple[int, slice]]:
    """(turn, its tokens) for each completion of the row, in order."""
    ends = np.flatnonzero(row.turn_ends) + 1
    turns = row.turn_ids[ends - 1]
    counts = [int((row.turn_ids[:end] == turn).sum()) for turn, end in zip(turns, ends, strict=True)]
    return [
        (int(turn), slice(int(end) - count, int(end)))
        for turn, end, count in zip(turns, ends, counts, strict=True)
    ]


def _same_images(a: Sequence[Image], b: Sequence[Image]) -> bool:
    return len(a) == len(b) and all(x is y or np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def _check(turn: Turn, n: int, max_row_tokens: int | None) -> None:
    tokens, logprobs = len(turn.completion.token_ids), len(turn.completion.logprobs)
    length = len(turn.prompt.token_ids) + tokens
    if not len(turn.prompt.token_ids):
        raise RLlibVLMError(f"Turn {n}: its prompt has no tokens, so nothing predicts the first sampled one.")
    if logprobs != tokens:
        raise RLlibVLMError(f"Turn {n}: {tokens} sampled tokens and {logprobs} log-probs; they must match.")
    if max_row_tokens is not None and length > max_row_tokens:
        raise RLlibVLMError(
            f"Turn {n}: prompt and completion are {length} tokens, a row holds {max_row_tokens}. "
            f"Raise the row budget to at least {length}, or lower the prompt or answer limit."
        )
