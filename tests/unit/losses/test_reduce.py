from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_vlm.errors import RLlibVLMError, UnknownNameError
from rllib_vlm.losses.reduce import Reduction, normalizer, reduce

# Two packed rows: sequences of 2 + 3 tokens and of 4 tokens; the last of row 1 does not count at all.
SEGMENTS = torch.tensor([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 2, 0]])
MASK = torch.tensor([[0, 1, 0, 1, 1, 0], [0, 1, 1, 1, 0, 0]], dtype=torch.bool)
LOSS = torch.tensor([[9.0, 2.0, 9.0, 3.0, 5.0, 9.0], [9.0, 1.0, 4.0, 7.0, 9.0, 9.0]])


@pytest.mark.parametrize(
    ("mode", "constant", "expected"),
    [
        ("token_mean", None, 22 / 6),
        ("sequence_mean_token_sum", None, 22 / 3),
        ("sequence_mean_token_mean", None, (2 + 4 + 4) / 3),
        ("fixed", 10.0, 22 / 30),
    ],
)
def test_by_hand(mode, constant, expected):
    total = normalizer(MASK, SEGMENTS, mode, constant=constant)
    assert reduce(LOSS, MASK, SEGMENTS, mode, total).item() == pytest.approx(expected)


@pytest.mark.parametrize("mode", get_args(Reduction))
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_gradients_of_any_cut_into_micro_batches_and_learners_are_those_of_one_batch(mode, data):
    rows = data.draw(st.integers(1, 6))
    seed = data.draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    segments = torch.randint(0, 4, (rows, 8), generator=generator).sort(1, descending=False).values
    mask = (torch.rand(rows, 8, generator=generator) < 0.5) & (segments > 0)
    weights = torch.randn(rows, 8, generator=generator, dtype=torch.float64)
    learners = data.draw(st.integers(1, 3))
    owner = torch.tensor(data.draw(st.lists(st.integers(0, 2 * learners - 1), min_size=rows, max_size=rows)))

    def gradient(pieces, divisor):
        x = torch.ones(rows, 8, dtype=torch.float64, requires_grad=True)
        parts = [normalizer(mask[p], segments[p], mode, constant=7.0) for p in pieces]
        total = torch.stack(parts).sum()
        for p in pieces:
            loss = (x * weights)[p].square()
            (reduce(loss, mask[p], segments[p], mode, total / divisor) / divisor).backward()
        return x.grad

    whole = gradient([torch.arange(rows)], 1)
    cut = gradient([torch.nonzero(owner == k)[:, 0] for k in range(2 * learners)], learners)
    torch.testing.assert_close(cut, whole)


def test_one_sequence_per_row_without_segments():
    total = normalizer(MASK, None, "sequence_mean_token_mean")
    assert total.item() == 2
    assert reduce(LOSS, MASK, None, "sequence_mean_token_mean", total).item() == pytest.approx(
        (10 / 3 + 4) / 2
    )


@pytest.mark.parametrize("mode", get_args(Reduction))
def test_nothing_to_learn_from_gives_zero_and_no_gradient(mode):
    loss = torch.full((2, 6), torch.nan, requires_grad=True)
    nothing = torch.zeros_like(MASK)
    value = reduce(loss, nothing, SEGMENTS, mode, normalizer(nothing, SEGMENTS, mode, constant=4.0))
    value.backward()
    assert value.item() == 0 and not loss.grad.any()


def test_unknown_mode_and_missing_constant():
    with pytest.raises(UnknownNameError, match="token_mean"):
        reduce(LOSS, MASK, SEGMENTS, "token_men", 1.0)
    with pytest.raises(UnknownNameError, match="token_mean"):
        normalizer(MASK, SEGMENTS, "mean")
    with pytest.raises(RLlibVLMError, match="positive constant"):
        normalizer(MASK, SEGMENTS, "fixed")
