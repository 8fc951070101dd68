"""Corrections for a sampler that computes other probabilities than the learner."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rllib_vlm.batching.mismatch import MismatchSettings, relearn
from rllib_vlm.batching.rows import rows_from_trajectory
from rllib_vlm.errors import ConfigErrors
from rllib_vlm.types import Completion, ParsedAction, Prompt, Trajectory, Turn

RATIOS = np.array([1.0, 3.0, 0.25, 1.5])


@pytest.fixture
def row():
    """A prompt of two tokens, then four whose probability the learner sees `RATIOS` times as high."""
    completion = Completion(
        token_ids=np.arange(4), logprobs=np.full(4, -1.0, np.float32), policy_version=0, finish_reason="stop"
    )
    turn = Turn(
        prompt=Prompt(token_ids=np.arange(2)),
        completion=completion,
        parsed=ParsedAction(valid=True),
        reward=0.0,
    )
    trajectory = Trajectory(turns=(turn,), group="g", terminated=True, truncated=False, success=True)
    return rows_from_trajectory(trajectory)[0]


OWN = np.concatenate([[0.0, 0.0], np.log(RATIOS) - 1.0]).astype(np.float32)


def corrected(row, **settings):
    (found,), gap = relearn([row], [OWN], MismatchSettings(**settings))
    np.testing.assert_array_equal(found.old_logprobs, OWN)
    return found, gap


def test_without_correction_the_gap_is_measured_and_nothing_else_changes(row):
    found, gap = corrected(row)
    np.testing.assert_array_equal(found.loss_weights, row.loss_weights)
    np.testing.assert_array_equal(found.loss_mask, row.loss_mask)
    metrics = gap.metrics()
    assert metrics["mismatch_kl"] == pytest.approx(np.mean(RATIOS - 1 - np.log(RATIOS)), rel=1e-5)
    assert metrics["sampler_gap"] == pytest.approx(np.mean(np.abs(np.log(RATIOS))), rel=1e-5)
    assert metrics["mismatch_log_ratio_max"] == pytest.approx(np.log(4.0), rel=1e-5)
    assert metrics["mismatch_corrected"] == 0.0


def test_truncated_weights_are_the_ratio_up_to_the_cap(row):
    found, gap = corrected(row, correction="truncate", cap=2.0)
    np.testing.assert_allclose(found.loss_weights, [1, 1, 1.0, 2.0, 0.25, 1.5], rtol=1e-5)
    assert gap.metrics()["mismatch_corrected"] == 0.25
    # A weight that was there stays in it; a token that does not count is left alone.
    halved = replace(row, loss_weights=0.5 * row.loss_weights, loss_mask=row.loss_mask & (np.arange(6) != 3))
    found, _ = corrected(halved, correction="truncate", cap=2.0)
    np.testing.assert_allclose(found.loss_weights[2:], [0.5, 0.5, 0.125, 0.75], rtol=1e-5)


def test_masked_are_tokens_off_by_more_than_the_cap_either_way(row):
    found, gap = corrected(row, correction="mask", cap=2.0)
    assert found.loss_mask.tolist() == [False, False, True, False, False, True]
    assert gap.metrics()["mismatch_corrected"] == 0.5
    np.testing.assert_array_equal(found.value_mask, row.value_mask)  # their states are real


def test_a_sequence_has_the_product_of_its_tokens(row):
    found, _ = corrected(row, correction="truncate", level="sequence", cap=4.0)
    np.testing.assert_allclose(found.loss_weights[2:], RATIOS.prod(), rtol=1e-5)
    found, _ = corrected(row, correction="mask", level="sequence", cap=1.1)
    assert not found.loss_mask.any()


def test_everything_wrong_with_the_settings_is_said():
    with pytest.raises(ConfigErrors, match=r"(?s)'truncat'.*'truncate'.*'sequenc'.*cap is 1"):
        MismatchSettings(correction="truncat", level="sequenc", cap=1)
