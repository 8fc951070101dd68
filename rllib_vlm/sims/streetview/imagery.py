"""Panoramas from files, decoded no larger than they are shown, in both layouts V-IRL's data come in.

- equirectangular: `ID.jpg` and `ID.metadata.json`, whose `rotation` says how far the picture is turned;
- four views: `ID_h000.jpg`, `ID_h090.jpg`, `ID_h180.jpg`, `ID_h270.jpg`, each 90 degrees wide.
"""

from __future__ import annotations

import io
import json
import math
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from rllib_vlm.errors import DataError
from rllib_vlm.sims.streetview.panorama import Panorama, mix, packed
from rllib_vlm.types import Image

FOLDER = "street_views"
FACES = (0, 90, 180, 270)
_CACHE_BYTES = 96 << 20


class PanoramaSource(Protocol):
    """Where panoramas come from."""

    def load(self, pano_id: str, least_width: int) -> Panorama:
        """The panorama, at any size of at least `least_width` columns, or as large as there is.

        Raises:
            DataError: there is no such panorama, or its files cannot be used.
        """


class CachedSource:
    """Keeps decoded panoramas while they fit; neighbours on a route and siblings of a group share them."""

    def __init__(self, source: PanoramaSource, *, limit_bytes: int = _CACHE_BYTES) -> None:
        self._source = source
        self._limit = limit_bytes
        self._kept: OrderedDict[tuple[str, int], Panorama] = OrderedDict()
        self._bytes = 0

    def load(self, pano_id: str, least_width: int) -> Panorama:
        """See `PanoramaSource.load`."""
        key = pano_id, least_width
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        panorama = self._source.load(pano_id, least_width)
        self._kept[key] = panorama
        self._bytes += panorama.pixels.nbytes
        while self._bytes > self._limit and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].pixels.nbytes
        return panorama

    def clear(self) -> None:
        """Forgets every decoded panorama."""
        self._kept.clear()
        self._bytes = 0


class FolderSource:
    """The `street_views` folder of a data set; each panorama may have either layout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, pano_id: str, least_width: int) -> Panorama:
        """See `PanoramaSource.load`."""
        whole = self.folder / f"{pano_id}.jpg"
        if whole.is_file():
            rotation = self._rotation(pano_id)
            return Panorama(decode(_read(whole), (least_width, least_width // 2), str(whole)), rotation)
        files = face_files(self.folder, pano_id)
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise DataError(f"{self.folder} has neither {whole.name} nor {', '.join(missing)}")
        side = math.ceil(least_width / 4)
        return join_faces([decode(_read(file), (side, side), str(file)) for file in files])

    def problems(self, pano_id: str) -> list[str]:
        """Everything wrong with the files of one panorama, without decoding pixels."""
        whole = self.folder / f"{pano_id}.jpg"
        files = [whole] if whole.is_file() else face_files(self.folder, pano_id)
        found = []
        if whole.is_file():
            try:
                self._rotation(pano_id)
            except DataError as error:
                found.append(str(error))
        elif not any(file.is_file() for file in files):
            return [f"{pano_id}: neither {whole.name} nor four views in {FOLDER}"]
        for file in files:
            try:
                with PIL.Image.open(file, formats=("JPEG",)) as picture:
                    width, height = picture.size
            except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
                found.append(f"{file.name}: {error if file.is_file() else 'missing'}")
                continue
            if file == whole and not 1.9 * height <= width <= 2.1 * height:
                found.append(f"{file.name}: {width}x{height} is not twice as wide as high")
        return found

    def _rotation(self, pano_id: str) -> float:
        file = self.folder / f"{pano_id}.metadata.json"
        try:
            rotation = json.loads(file.read_text(encoding="utf-8"))["rotation"]
            if isinstance(rotation, bool) or not math.isfinite(rotation):
                raise ValueError(f"rotation is {rotation!r}")
        except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            raise DataError(f"{file}: {type(error).__name__}: {error}") from error
        return float(rotation)


def face_files(folder: Path, pano_id: str) -> list[Path]:
    """The files of the four-view layout."""
    return [folder / f"{pano_id}_h{heading:03d}.jpg" for heading in FACES]


def decode(data: bytes, least: tuple[int, int], name: str) -> Image:
    """The pixels `[H, W, 3]` of a JPEG, at an eighth, a quarter, half or all of its size, not below `least`.

    Raises:
        DataError: the bytes are not a whole JPEG.
    """
    try:
        with PIL.Image.open(io.BytesIO(data), formats=("JPEG",)) as picture:
            picture.draft("RGB", least)
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise DataError(f"{name} is not a whole JPEG: {error}") from error


def join_faces(faces: list[Image]) -> Panorama:
    """A panorama from square views at 0, 90, 180 and 270 degrees; above and below them, their edges go on."""
    parts = []
    for face in faces:
        height, width = face.shape[:2]
        x, rows, index, weight = _face_map(height, width)
        band = packed(face)
        left = np.floor(x).astype(np.intp)
        columns = band.take(left, axis=0)
        mix(columns, band.take(left + 1, axis=0, mode="clip"), _weights(x - left)[:, None], keep_lanes=True)
        flat = columns.reshape(-1)
        mixed = flat.take(index)
        mix(mixed, flat.take(np.minimum(index + 1, rows), mode="clip"), weight)
        parts.append(mixed.view(np.uint8).reshape(*mixed.shape, 8)[..., 1:6:2])
    # The first view looks north, to column 0 of a panorama that is not turned: half of it is at either end.
    return Panorama(np.roll(np.concatenate(parts, axis=1), -parts[0].shape[1] // 2, axis=1), 0.0)


@lru_cache(maxsize=8)
def _face_map(height: int, width: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """For a quarter of a panorama `[2 width, width]`: columns of the face, and rows as indices into them."""
    longitude = ((np.arange(width) + 0.5) / width - 0.5) * (np.pi / 2)
    latitude = ((np.arange(2 * width) + 0.5) / (2 * width) - 0.5) * np.pi
    x = np.clip((np.tan(longitude) + 1) / 2 * width - 0.5, 0, width - 1)
    y = (np.tan(latitude)[:, None] / np.cos(longitude) + 1) / 2 * height - 0.5
    y = np.clip(y, 0, height - 1)
    above = np.floor(y).astype(np.intp)
    start = np.arange(width) * height
    return x, start + height - 1, above + start, _weights(y - above)


def _weights(share: NDArray[np.float64]) -> NDArray[np.uint64]:
    return np.rint(share * 256).astype(np.uint64)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error}") from error
