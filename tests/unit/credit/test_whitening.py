import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rllib_vlm.credit.whitening import Moments, whiten

quick = settings(max_examples=50, deadline=None)
batches = hnp.arrays(np.float32, (4, 7), elements=st.floats(-100, 100, width=32))
masks = hnp.arrays(np.bool_, (4, 7))


@quick
@given(batches, masks)
def test_whitened_over_the_mask_and_zero_elsewhere(values, mask):
    out = whiten(values, mask)
    assert out.dtype == np.float32
    assert not out[~mask].any()
    if mask.sum() > 1 and np.ptp(values[mask]) > 1e-2:
        np.testing.assert_allclose(out[mask].mean(), 0, atol=1e-4)
        np.testing.assert_allclose(out[mask].std(), 1, atol=1e-3)


@quick
@given(batches, masks, st.integers(0, 4))
def test_parts_on_two_learners_agree_with_the_whole(values, mask, cut):
    parts = Moments.of(values[:cut], mask[:cut]), Moments.of(values[cut:], mask[cut:])
    together, whole = sum(parts, Moments()), Moments.of(values, mask)
    assert together.count == whole.count
    np.testing.assert_allclose([together.mean, together.std], [whole.mean, whole.std], rtol=1e-6, atol=1e-6)


def test_equal_entries_become_zero():
    values = np.full(5, 0.1) + np.array([0, 1e-17, 0, -1e-17, 0])
    assert not whiten(values, np.ones(5, bool)).any()
    assert not whiten(np.array([3.0]), np.array([True])).any()
