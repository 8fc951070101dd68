"""Tiling against transformers' own image processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from rllib_vlm.errors import ModelError
from rllib_vlm.models.mllama.images import ImageFormat, cut

FORM = ImageFormat(tile=28, max_tiles=4)
SIDES = st.integers(1, 200)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES)
@example(28, 28)
@example(57, 113)  # shrinks onto the edge of a smaller canvas
@example(1, 200)
@example(112, 28)
def test_tiles_are_those_of_transformers(height: int, width: int) -> None:
    image = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    processor = MllamaImageProcessorPil(
        size={"height": 28, "width": 28}, image_mean=list(FORM.mean), image_std=list(FORM.std)
    )
    expected = processor(images=[[image]], return_tensors="pt", input_data_format="channels_last")
    canvas = FORM.resize(image)
    tiles = cut([torch.tensor(canvas)], FORM)
    torch.testing.assert_close(tiles.pixels[0], expected["pixel_values"][0, 0], atol=1e-5, rtol=1e-5)
    assert int(tiles.ratio_ids[0]) == int(expected["aspect_ratio_ids"][0, 0])
    assert int(tiles.counts[0]) == expected["num_tiles"][0][0]
    assert FORM.resize(canvas) is canvas  # what has its final size stays as it is


def test_pictures_of_different_sizes_share_a_batch() -> None:
    images = [np.full((28, 28, 3), 255, np.uint8), np.full((56, 56, 3), 9, np.uint8)]
    tiles = cut([torch.from_numpy(i) for i in images], FORM)
    assert tiles.counts.tolist() == [1, 4] and tiles.ratio_ids.tolist() == [1, 6]
    assert float(tiles.pixels[0, 1:].abs().max()) == 0 and float(tiles.pixels[1].abs().min()) > 0


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)]
)
def test_what_is_no_picture_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ModelError, match="must be a uint8 array"):
        FORM.resize(image)


def test_a_size_that_is_no_canvas_is_refused() -> None:
    for shape in ((28, 30, 3), (84, 56, 3), (0, 0, 3)):
        with pytest.raises(ModelError, match="no canvas of 28-pixel tiles"):
            cut([torch.zeros(shape, dtype=torch.uint8)], FORM)
