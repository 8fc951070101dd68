from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_vlm.batching.rows import (
    gather_predicting,
    rows_from_trajectory,
    scatter_to_tokens,
    split_by_turn,
    with_credit,
)
from rllib_vlm.errors import RLlibVLMError
from rllib_vlm.types import Completion, ParsedAction, Prompt, TokenCredit, Trajectory, Turn


def image(value, h=4, w=6):
    return np.full((h, w, 3), value, np.uint8)


def turn(prompt, completion, *, images=(), finish="stop", version=3):
    return Turn(
        prompt=Prompt(token_ids=np.array(prompt, np.int64), images=tuple(images)),
        completion=Completion(
            token_ids=np.array(completion, np.int64),
            logprobs=-np.arange(1, len(completion) + 1, dtype=np.float32),
            policy_version=version,
            finish_reason=finish,
        ),
        parsed=ParsedAction(valid=True),
        reward=0.0,
    )


def trajectory(*turns, values=()):
    return Trajectory(
        turns=tuple(turns), group="g", terminated=True, truncated=False, success=False, values=values
    )


def credit(*advantages):
    return [
        TokenCredit(advantages=np.array(a, np.float32), returns=np.array(a, np.float32) * 10)
        for a in advantages
    ]


def test_columns_of_one_turn_are_aligned_to_the_tokens():
    t = trajectory(turn([1, 40, 52], [61, 2]), values=(np.array([0.5, 0.25], np.float32),))
    (row,) = rows_from_trajectory(t, credit([7.0, 8.0]))
    assert row.token_ids.tolist() == [1, 40, 52, 61, 2] and len(row) == 5
    assert row.loss_mask.tolist() == row.value_mask.tolist() == [False] * 3 + [True] * 2
    assert row.old_logprobs.tolist() == [0, 0, 0, -1, -2]
    assert row.advantages.tolist() == [0, 0, 0, 7, 8] and row.returns.tolist() == [0, 0, 0, 70, 80]
    assert row.old_values.tolist() == [0, 0, 0, 0.5, 0.25]
    assert row.policy_versions.tolist() == [-1, -1, -1, 3, 3]
    assert row.turn_ids.tolist() == [-1, -1, -1, 0, 0]
    assert row.turn_ends.tolist() == [False] * 4 + [True]


def test_full_history_is_one_row():
    a, b = image(1), image(2)
    t = trajectory(
        turn([1, 40], [61, 2], images=[a]),
        turn([1, 40, 61, 2, 52], [62, 2], images=[a.copy(), b], version=4),
    )
    (row,) = rows_from_trajectory(t, credit([1.0, 2.0], [3.0, 4.0]))
    assert row.token_ids.tolist() == [1, 40, 61, 2, 52, 62, 2]
    assert row.turn_ids.tolist() == [-1, -1, 0, 0, -1, 1, 1]
    assert row.loss_mask.tolist() == [False, False, True, True, False, True, True]
    assert np.flatnonzero(row.turn_ends).tolist() == [3, 6]
    assert row.advantages.tolist() == [0, 0, 1, 2, 0, 3, 4]
    assert row.old_logprobs.tolist() == [0, 0, -1, -2, 0, -1, -2]
    assert row.policy_versions.tolist() == [-1, -1, 3, 3, -1, 4, 4]
    assert [i[0, 0, 0] for i in row.images] == [1, 2]


@pytest.mark.parametrize(
    "second",
    [
        turn([1, 41, 61, 2, 52], [62], images=[image(1)]),  # an earlier token differs
        turn([1, 40, 61, 3, 52], [62], images=[image(1)]),  # the completion was tokenised again
        turn([1, 40], [62], images=[image(1)]),  # shorter: the window moved
        turn([1, 40, 61, 2, 52], [62], images=[image(9)]),  # same tokens, other pixels
        turn([1, 40, 61, 2, 52], [62]),  # the image was dropped
    ],
)
def test_anything_but_an_exact_prefix_starts_a_new_row(second):
    rows = rows_from_trajectory(trajectory(turn([1, 40], [61, 2], images=[image(1)]), second))
    assert [np.unique(r.turn_ids[r.sampled]).tolist() for r in rows] == [[0], [1]]


def test_a_turn_longer_than_a_row_is_named():
    t = trajectory(turn([1], [2, 3]), turn([1, 2, 3, 4], [5]), turn([1, 2, 3, 4, 5], [6]))
    assert [len(r) for r in rows_from_trajectory(t, max_row_tokens=6)] == [6]
    long = trajectory(turn([1], [2, 3]), turn([1, 9], [5]), turn([1, 9, 5, 4], [6]))
    assert [len(r) for r in rows_from_trajectory(long, max_row_tokens=5)] == [3, 5]
    with pytest.raises(RLlibVLMError, match=r"Turn 2.*at least 5"):
        rows_from_trajectory(long, max_row_tokens=4)


def test_truncated_answers_leave_the_policy_loss_but_not_the_critic():
    t = trajectory(turn([1], [2, 3], finish="length"), turn([1, 2, 3, 4], [5]))
    (row,) = rows_from_trajectory(t, mask_truncated=True)
    assert row.loss_mask.tolist() == [False, False, False, False, True]
    assert row.value_mask.tolist() == row.sampled.tolist() == [False, True, True, False, True]
    assert rows_from_trajectory(t)[0].loss_mask.sum() == 3


def test_a_turn_without_tokens_makes_no_row_and_breaks_no_prefix():
    assert rows_from_trajectory(trajectory(turn([1, 2], []))) == []
    (row,) = rows_from_trajectory(trajectory(turn([1], [2]), turn([1, 2], []), turn([1, 2, 3], [4])))
    assert row.turn_ids.tolist() == [-1, 0, -1, 2]


def test_value_mask_of_the_credit_is_kept():
    c = [replace(credit([1.0, 2.0])[0], value_mask=np.array([True, False]))]
    (row,) = rows_from_trajectory(trajectory(turn([1], [2, 3])), c)
    assert row.value_mask.tolist() == [False, True, False]
    assert row.loss_mask.tolist() == [False, True, True]


def test_wrong_lengths_are_named():
    good = turn([1], [2, 3])
    bad = replace(good, completion=replace(good.completion, logprobs=np.zeros(1, np.float32)))
    with pytest.raises(RLlibVLMError, match="2 sampled tokens and 1 log-probs"):
        rows_from_trajectory(trajectory(bad))
    with pytest.raises(RLlibVLMError, match="no tokens"):
        rows_from_trajectory(trajectory(turn([], [2])))
    with pytest.raises(RLlibVLMError, match="Turn 0 sampled 2 tokens and has credit of 3"):
        rows_from_trajectory(trajectory(good), credit([1.0, 2.0, 3.0]))
    with pytest.raises(RLlibVLMError, match="Turn 0 sampled 2 tokens and has no credit"):
        with_credit(rows_from_trajectory(trajectory(good)), [])


@st.composite
def episodes(draw):
    """Turns that sometimes extend the last prompt exactly and sometimes do not."""
    turns, so_far, images = [], [], []
    for _ in range(draw(st.integers(1, 6))):
        fresh = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
        new_images = [image(draw(st.integers(0, 2))) for _ in range(draw(st.integers(0, 2)))]
        if draw(st.booleans()):
            so_far, images = [], []
        prompt, images = [*so_far, *fresh], [*images, *new_images]
        completion = draw(st.lists(st.integers(1, 3), max_size=4))
        turns.append(turn(prompt, completion, images=images))
        so_far = [*prompt, *completion]
    return trajectory(*turns)


@settings(max_examples=80, deadline=None)
@given(episodes(), st.sampled_from([None, 30]))
def test_every_sampled_token_appears_once_with_its_own_context(episode, budget):
    if budget is not None and any(
        len(t.prompt.token_ids) + len(t.completion.token_ids) > budget for t in episode.turns
    ):
        return
    rows = rows_from_trajectory(episode, max_row_tokens=budget)
    assert sum(r.loss_mask.sum() for r in rows) == sum(len(t.completion.token_ids) for t in episode.turns)
    assert all(budget is None or len(r) <= budget for r in rows)
    for n, t in enumerate(episode.turns):
        if not len(t.completion.token_ids):
            continue
        (row,) = [r for r in rows if (r.turn_ids == n).any()]
        where = np.flatnonzero(row.turn_ids == n)
        np.testing.assert_array_equal(row.token_ids[where], t.completion.token_ids)
        np.testing.assert_array_equal(row.old_logprobs[where], t.completion.logprobs)
        np.testing.assert_array_equal(row.token_ids[: where[0]], t.prompt.token_ids)
        assert all(np.array_equal(x, y) for x, y in zip(row.images, t.prompt.images, strict=False))
        assert row.turn_ends[where].tolist() == [False] * (len(where) - 1) + [True]


@settings(max_examples=40, deadline=None)
@given(episodes())
def test_columns_come_back_by_turn(episode):
    rows = rows_from_trajectory(episode)
    values = split_by_turn(rows, [r.old_logprobs for r in rows], len(episode.turns))
    for value, t in zip(values, episode.turns, strict=True):
        np.testing.assert_array_equal(value, t.completion.logprobs)


def test_predicting_state_is_one_to_the_left():
    mask = torch.tensor([[False, False, True, True], [False, True, False, True]])
    hidden = torch.arange(8.0).reshape(2, 4, 1).requires_grad_()
    found = gather_predicting(hidden, mask)
    assert found[:, 0].tolist() == [1, 2, 4, 6]
    token_ids = torch.arange(10, 18).reshape(2, 4)
    assert token_ids[mask].tolist() == [12, 13, 15, 17]  # the same order
    column = scatter_to_tokens(found[:, 0], mask)
    assert column.tolist() == [[0, 0, 1, 2], [0, 4, 0, 6]]
    column.sum().backward()
    assert hidden.grad[..., 0].tolist() == [[0, 1, 1, 0], [1, 0, 1, 0]]
