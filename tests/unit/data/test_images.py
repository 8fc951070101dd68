import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rllib_vlm.data.images import CODECS, decode_image, encode_image
from rllib_vlm.errors import DataError, UnknownNameError

pixels = hnp.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3)))


@pytest.mark.parametrize("codec", CODECS)
@given(image=pixels)
@settings(max_examples=30, deadline=None)
def test_pixels_come_back_exactly(codec, image):
    np.testing.assert_array_equal(decode_image(encode_image(image, codec)), image)


def test_a_view_of_a_larger_array_is_encoded_as_itself():
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    np.testing.assert_array_equal(decode_image(encode_image(image[::2, ::-1])), image[::2, ::-1])


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))]
)
def test_anything_but_rgb_bytes_is_refused(bad):
    with pytest.raises(DataError, match="uint8"):
        encode_image(bad)


def test_half_an_image_is_refused():
    data = encode_image(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8), "png")
    with pytest.raises(DataError, match="whole"):
        decode_image(data[: len(data) // 2])
    with pytest.raises(DataError, match="whole"):
        decode_image(b"GIF89a")


def test_an_unknown_codec_names_the_known_ones():
    with pytest.raises(UnknownNameError, match="Did you mean 'webp'"):
        encode_image(np.zeros((2, 2, 3), np.uint8), "wepb")
