from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_vlm.core.update_plan import learning_rate, step_assignment


def test_constant_rate_with_warm_up():
    rates = [learning_rate(1.0, u, warmup=3) for u in range(6)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 0.55), ("cosine", 0.55)])
def test_falling_schedules_end_at_the_final_fraction(schedule, middle):
    rate = lambda u: learning_rate(2.0, u, schedule=schedule, warmup=2, total=12, final_fraction=0.1)  # noqa: E731
    assert rate(2) == pytest.approx(2.0)
    assert rate(7) == pytest.approx(2.0 * middle)
    assert rate(12) == rate(50) == pytest.approx(0.2)


def test_a_spent_budget_ends_the_schedule_before_its_updates_do():
    rate = lambda u, spent: learning_rate(1.0, u, schedule="linear", total=10, spent=spent)  # noqa: E731
    assert rate(2, 0.1) == pytest.approx(0.8)  # as many updates as planned: the clock changes nothing
    assert rate(2, 0.6) == pytest.approx(0.4)
    assert rate(2, 1.5) == 0.0
    assert learning_rate(1.0, 2, total=10, spent=0.6) == 1.0


def test_linear_and_cosine_differ_off_the_middle():
    linear, cosine = (learning_rate(1.0, 2, schedule=s, total=10) for s in ("linear", "cosine"))
    assert linear == pytest.approx(0.8)
    assert cosine == pytest.approx(0.5 * (1 + np.cos(0.2 * np.pi)))


@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=20),
    size=st.one_of(st.none(), st.integers(1, 12)),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_every_row_is_in_one_step_and_steps_are_even(counts, size, seed):
    assignment, steps = step_assignment(counts, epoch=0, minibatch_size=size, seed=seed)
    assert len(assignment) == sum(counts)
    if sum(counts):
        sizes = np.bincount(assignment, minlength=steps)
        assert len(sizes) == steps
        assert sizes.max() - sizes.min() <= 1


def test_epochs_differ_and_seeds_repeat():
    first, _ = step_assignment([40], epoch=0, minibatch_size=10, seed=1)
    again, _ = step_assignment([40], epoch=0, minibatch_size=10, seed=1)
    second, _ = step_assignment([40], epoch=1, minibatch_size=10, seed=1)
    assert (first == again).all()
    assert (first != second).any()
