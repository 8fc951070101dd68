from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_columns import one

from rllib_vlm.losses.policy import POLICY_LOSSES, PolicyLoss


@settings(max_examples=100, deadline=None)
@given(
    st.floats(0.05, 10),
    st.floats(-3, -1e-3) | st.floats(1e-3, 3),
    st.floats(0.05, 0.3),
    st.floats(0.05, 0.5),
)
def test_clip_is_its_definition_and_has_no_gradient_outside(ratio, advantage, low, high):
    loss, gradient, metrics = one(ratio, advantage, clip_low=low, clip_high=high)
    clipped = min(max(ratio, 1 - low), 1 + high)
    assert loss == pytest.approx(-min(ratio * advantage, clipped * advantage), rel=1e-6, abs=1e-9)
    outside = (advantage > 0 and ratio > 1 + high) or (advantage < 0 and ratio < 1 - low)
    if outside:
        assert gradient == 0.0
    else:
        assert gradient == pytest.approx(-ratio * advantage, rel=1e-6, abs=1e-9)
    assert metrics["clip_fraction"].item() == float(outside)
    assert metrics["ratio_max"].item() == pytest.approx(ratio, rel=1e-6)


def test_dual_clip_bounds_the_loss_of_bad_tokens():
    assert one(8.0, -1.0)[0] == pytest.approx(8.0)
    loss, gradient, metrics = one(8.0, -1.0, dual_clip=3.0)
    assert (loss, gradient, metrics["clip_fraction"].item()) == (pytest.approx(3.0), 0.0, 1.0)
    assert one(2.0, -1.0, dual_clip=3.0)[0] == pytest.approx(2.0)
    assert one(1.1, 1.0, dual_clip=3.0)[1] == pytest.approx(-1.1)


def test_every_policy_loss_is_a_file_of_its_name():
    assert set(POLICY_LOSSES) == set(get_args(PolicyLoss))
    for name, row in POLICY_LOSSES.items():
        assert row.surrogate.__name__ == name and row.surrogate.__module__ == f"rllib_vlm.losses.{name}"
        assert "Source: " in row.surrogate.__doc__
