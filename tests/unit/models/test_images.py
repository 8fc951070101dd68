from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from rllib_vlm.errors import ModelError
from rllib_vlm.models.qwen2_5_vl.images import ImageFormat, patchify, repeat_frames

FORM = ImageFormat()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_patches_are_those_of_transformers(high: int, wide: int, seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (2, 28 * high, 28 * wide, 3), dtype=np.uint8)
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 1 << 24})
    expected = processor(images=list(images), return_tensors="pt")
    got = repeat_frames(patchify(torch.from_numpy(images), FORM), FORM)
    torch.testing.assert_close(got.flatten(0, 1), expected["pixel_values"], atol=1e-6, rtol=1e-5)
    assert expected["image_grid_thw"].tolist() == [[1, 2 * high, 2 * wide]] * 2
    assert FORM.tokens(28 * high, 28 * wide) == high * wide


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000))
def test_sizes_are_those_of_transformers(height: int, width: int) -> None:
    form = ImageFormat(min_pixels=56 * 56, max_pixels=400 * 28 * 28)
    try:
        expected = smart_resize(height, width, 28, form.min_pixels, form.max_pixels)
    except ValueError:
        with pytest.raises(ModelError, match="200-fold"):
            form.fit(height, width)
        return
    assert form.fit(height, width) == expected


def test_resize_leaves_a_right_size_alone_and_matches_transformers_otherwise() -> None:
    image = np.random.default_rng(0).integers(0, 256, (112, 196, 3), dtype=np.uint8)
    assert FORM.resize(image) is image
    odd = image[:100, :150]
    resized = FORM.resize(odd)
    assert resized.shape == (112, 140, 3)
    expected = Qwen2VLImageProcessorPil()(images=[odd], return_tensors="pt")["pixel_values"]
    got = repeat_frames(patchify(torch.from_numpy(resized.copy())[None], FORM), FORM)[0]
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
