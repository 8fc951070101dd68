from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_vlm.models.sampling import apply_sampling, draw, sample, token_logprobs
from rllib_vlm.types import SamplingParams

PROBABILITIES = torch.tensor([0.4, 0.05, 0.3, 0.0, 0.25])


def test_temperature_is_a_power_of_the_probabilities() -> None:
    got = apply_sampling(PROBABILITIES.log(), SamplingParams(temperature=0.5)).exp()
    torch.testing.assert_close(got, PROBABILITIES**2 / (PROBABILITIES**2).sum())


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.3, [0]), (0.5, [0, 2]), (0.71, [0, 2, 4]), (1.0, [0, 1, 2, 4])]
)
def test_nucleus_is_the_fewest_tokens_that_reach_the_mass(top_p: float, kept: list[int]) -> None:
    got = apply_sampling(PROBABILITIES.log(), SamplingParams(top_p=top_p)).exp()
    expected = torch.zeros(5)
    expected[kept] = PROBABILITIES[kept] / PROBABILITIES[kept].sum()
    torch.testing.assert_close(got, expected)


def test_greedy_reports_log_probs_at_temperature_one_without_nucleus() -> None:
    ids, logprobs = sample(
        PROBABILITIES.log()[None], SamplingParams(temperature=0, top_p=0.1), torch.zeros(1)
    )
    assert ids.tolist() == [0]
    assert float(logprobs) == pytest.approx(math.log(0.4), abs=1e-6)


@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(temperature=0.7, top_p=0.8)])
def test_frequencies_are_the_distribution(sampling: SamplingParams) -> None:
    logits = PROBABILITIES.log().expand(40_000, -1)
    ids, logprobs = sample(logits, sampling, draw([0], len(logits), logits.device)[0])
    expected = apply_sampling(PROBABILITIES.log(), sampling)
    frequencies = torch.bincount(ids, minlength=5) / len(ids)
    torch.testing.assert_close(frequencies, expected.exp(), atol=0.01, rtol=0)
    assert int(frequencies.count_nonzero()) == int((expected > -torch.inf).sum())
    torch.testing.assert_close(logprobs, expected[ids])


@settings(max_examples=30, deadline=None)
@given(st.floats(0.2, 2.0), st.floats(0.05, 1.0), st.integers(0, 1000))
def test_learning_gives_the_log_probs_of_sampling(temperature: float, top_p: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(16, 40, generator=generator)
    sampling = SamplingParams(temperature=temperature, top_p=top_p)
    ids, logprobs = sample(logits, sampling, draw([seed], len(logits), logits.device)[0])
    torch.testing.assert_close(token_logprobs(logits, ids, sampling), logprobs)


def test_a_token_that_left_the_nucleus_keeps_a_finite_log_prob_and_gradient() -> None:
    logits = torch.tensor([[5.0, 1.0, 0.0]], requires_grad=True)
    logprob = token_logprobs(logits, torch.tensor([2]), SamplingParams(top_p=0.5))
    torch.testing.assert_close(logprob, torch.log_softmax(torch.tensor([5.0, 0.0]), 0)[1:])
    logprob.sum().backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())
