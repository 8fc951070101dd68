"""Views of a panorama: geometry against the direction each pixel looks in, layouts, sizes, speed's means."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from rllib_vlm.errors import DataError
from rllib_vlm.sims.streetview.imagery import CachedSource, FolderSource, decode, face_files, join_faces
from rllib_vlm.sims.streetview.panorama import GAP, GridRenderer, Panorama
from rllib_vlm.types import Image


def colours(longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    """A colour for each direction, smooth all around."""
    flat = np.cos(latitude)
    parts = (np.cos(longitude) * flat, np.sin(longitude) * flat, np.sin(latitude) + 0 * longitude)
    return 127 + 120 * np.stack(parts, axis=-1)


def panorama(width: int, rotation: float) -> Panorama:
    longitude = np.radians((np.arange(width) + 0.5) / width * 360 - rotation)
    latitude = ((np.arange(width // 2) + 0.5) / (width // 2) - 0.5) * np.pi
    return Panorama(np.rint(colours(longitude[None], latitude[:, None])).astype(np.uint8), rotation)


def looked_at(side: int, heading: float) -> np.ndarray:
    """What a pinhole camera with 90 degrees of view sees, pixel by pixel."""
    offset = (np.arange(side) - (side - 1) / 2) / (side / 2)
    x, y = np.meshgrid(offset, offset)
    return colours(np.arctan2(x, 1) + np.radians(heading), np.arcsin(y / np.sqrt(x * x + y * y + 1)))


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("rotation", [0.0, 73.5, 300.0])
def test_every_pixel_looks_where_a_pinhole_camera_looks(original: bool, rotation: float) -> None:
    side, headings = 48, (0.0, 90.0, 200.0, 359.0)
    grid = GridRenderer(side, original=original).render(panorama(1024, rotation), headings)
    assert grid.shape == (2 * side + GAP, 2 * side + GAP, 3) and grid.dtype == np.uint8
    assert not grid[side : side + GAP].any() and not grid[:, side : side + GAP].any()
    for k, heading in enumerate(headings):
        top, left = (side + GAP) * (k // 2), (side + GAP) * (k % 2)
        view = grid[top : top + side, left : left + side]
        np.testing.assert_allclose(view, looked_at(side, heading), atol=1.6)


def test_colours_do_not_leak_into_each_other() -> None:
    for colour in ((255, 0, 255), (0, 255, 0), (255, 255, 255), (1, 254, 3)):
        pixels = np.full((32, 64, 3), colour, np.uint8)
        grid = GridRenderer(20).render(Panorama(pixels, 11.0), (3, 93, 183, 273))
        assert (grid[:20, :20] == colour).all() and (grid[-20:, -20:] == colour).all()


def test_four_views_make_the_panorama_they_were_taken_from() -> None:
    whole = panorama(1024, 0.0)
    faces = [GridRenderer(128).render(whole, (h,) * 4)[:128, :128] for h in (0, 90, 180, 270)]
    joined = join_faces(faces)
    assert joined.pixels.shape == (256, 512, 3)
    # Corners of a view reach 35 degrees up and down.
    np.testing.assert_allclose(joined.pixels[100:156], panorama(512, 0.0).pixels[100:156].astype(int), atol=3)


def save(path: Path, pixels: Image) -> None:
    PIL.Image.fromarray(pixels).save(path, quality=95)


def test_both_layouts_show_the_same_and_are_decoded_no_larger_than_asked(tmp_path: Path) -> None:
    whole = panorama(1024, 40.0)
    save(tmp_path / "a.jpg", whole.pixels)
    (tmp_path / "a.metadata.json").write_text(json.dumps({"rotation": 40.0}))
    for heading, file in zip((0, 90, 180, 270), face_files(tmp_path, "b"), strict=True):
        save(file, GridRenderer(256).render(whole, (heading,) * 4)[:256, :256])
    source = FolderSource(tmp_path)
    assert source.load("a", 200).pixels.shape == (128, 256, 3)
    assert source.load("a", 5000).pixels.shape == (512, 1024, 3)
    one, other = (GridRenderer(64).render(source.load(name, 512), (10, 100, 190, 280)) for name in "ab")
    middle = slice(16, 48)  # above and below, four views know nothing
    np.testing.assert_allclose(one[middle].astype(int), other[middle].astype(int), atol=12)
    np.testing.assert_allclose(one[middle, 8:56], looked_at(64, 10)[middle, 8:56], atol=12)


def test_what_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    source = FolderSource(tmp_path)
    with pytest.raises(DataError, match=r"a_h000\.jpg"):
        source.load("a", 64)
    save(tmp_path / "a.jpg", panorama(64, 0.0).pixels)
    for metadata in ("{}", '{"rotation": "x"}', '{"rotation": NaN}', "["):
        (tmp_path / "a.metadata.json").write_text(metadata)
        with pytest.raises(DataError, match="metadata"):
            source.load("a", 64)
    buffer = io.BytesIO()
    PIL.Image.fromarray(panorama(64, 0.0).pixels).save(buffer, "PNG")
    for data in (b"", b"\xff\xd8\xff", buffer.getvalue()):
        with pytest.raises(DataError, match="whole JPEG"):
            decode(data, (64, 32), "a.jpg")


def test_a_cache_keeps_what_fits_and_the_newest(tmp_path: Path) -> None:
    class Counting:
        def __init__(self) -> None:
            self.loads: list[str] = []

        def load(self, pano_id: str, least_width: int) -> Panorama:
            self.loads.append(pano_id)
            return panorama(64, 0.0)

    source = Counting()
    cached = CachedSource(source, limit_bytes=2 * 64 * 32 * 3)
    for name in "aabacab":
        cached.load(name, 64)
    assert "".join(source.loads) == "abcb"
