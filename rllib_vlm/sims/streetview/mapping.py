"""Where panoramas stand: `gps_pano_mapping.pkl`, read without trusting it, or the same as JSON.

A pickle is a program. This reader's unpickler knows no global name at all, so a file can hold numbers,
strings, tuples, lists and dicts, and nothing in it can run.
"""

from __future__ import annotations

import io
import json
import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rllib_vlm.errors import DataError
from rllib_vlm.files import write_text
from rllib_vlm.sims.streetview.geo import Geocode

PICKLE, JSON = "gps_pano_mapping.pkl", "gps_pano_mapping.json"
_LARGEST_BYTES = 1 << 30


_TUPLES = (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)


def _flat(code: bytes) -> Callable[[Any], None]:
    """What makes a tuple of that code, and refuses one that holds tuples."""
    make = pickle._Unpickler.dispatch[code[0]]

    def load(unpickler: Any) -> None:
        make(unpickler)
        if any(isinstance(item, tuple) for item in unpickler.stack[-1]):
            raise DataError("it has a tuple within a tuple: a mapping needs places and ids only")

    return load


class _PlainUnpickler(pickle._Unpickler):
    """Python's own in Python: the memo of the one in C takes as much memory as a hostile file says."""

    def find_class(self, module: str, name: str) -> Any:
        raise DataError(f"it asks for {module}.{name}: a mapping needs plain tuples and strings only")

    # A place is a tuple of numbers. Tuples that hold one tuple twice, and so on, are few bytes and take years to hash.
    dispatch = {**pickle._Unpickler.dispatch, **{code[0]: _flat(code) for code in _TUPLES}}

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("it refers to objects outside the file")


def read_pickle(path: Path) -> dict[Geocode, str]:
    """The mapping of a pickle that holds `{(latitude, longitude): panorama id}` and nothing else.

    Raises:
        DataError: the file is missing, hostile, torn or something else.
    """
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise DataError(f"it has {path.stat().st_size} bytes, over the limit of {_LARGEST_BYTES}")
        content = _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
        return _checked(content)
    except DataError as error:
        raise DataError(f"{path} is refused: {error}") from error
    # A torn pickle raises anything: EOFError, IndexError, KeyError, UnicodeDecodeError, ...
    except Exception as error:
        raise DataError(f"{path} is no readable pickle: {type(error).__name__}: {error}") from error


def read_json(path: Path) -> dict[Geocode, str]:
    """The mapping of a JSON file, `{"format": ..., "panoramas": [[latitude, longitude, id], ...]}`.

    Raises:
        DataError: the file is missing, no JSON or of another format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = content["panoramas"]
        return _checked({(latitude, longitude): pano_id for latitude, longitude, pano_id in rows})
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except (OSError, ValueError, RecursionError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"{path} is no mapping in JSON: {type(error).__name__}: {error}") from error


def write_json(path: Path, mapping: Mapping[Geocode, str]) -> None:
    """Writes what `read_json` reads; floats keep every bit."""
    rows = [[latitude, longitude, pano_id] for (latitude, longitude), pano_id in mapping.items()]
    content = {"format": "rllib_vlm.gps_pano_mapping", "version": 1, "panoramas": rows}
    write_text(path, json.dumps(content))


def read_mapping(folder: Path) -> dict[Geocode, str]:
    """The mapping of a data set: its JSON if there is one, else its pickle.

    Raises:
        DataError: neither is there, or it cannot be used.
    """
    if (folder / JSON).is_file():
        return read_json(folder / JSON)
    if (folder / PICKLE).is_file():
        return read_pickle(folder / PICKLE)
    raise DataError(f"{folder} has neither {JSON} nor {PICKLE}")


def _checked(content: Any) -> dict[Geocode, str]:
    if not isinstance(content, dict):
        raise DataError(f"it holds a {type(content).__name__}, not a mapping of places to panorama ids")
    mapping: dict[Geocode, str] = {}
    for place, pano_id in content.items():
        sound = (
            isinstance(place, tuple)
            and len(place) == 2
            and all(isinstance(v, int | float) and not isinstance(v, bool) for v in place)
            and all(math.isfinite(v) for v in place)
            and -90 <= place[0] <= 90
            and -360 <= place[1] <= 360
        )
        if not sound:
            raise DataError(f"{place!r} is no (latitude, longitude) in degrees")
        if not isinstance(pano_id, str) or not _is_file_name(pano_id):
            raise DataError(f"the panorama at {place!r} has the id {pano_id!r}, which is no plain file name")
        mapping[(float(place[0]), float(place[1]))] = pano_id
    return mapping


def _is_file_name(name: str) -> bool:
    """Ids become file names: none may lead out of the folder."""
    return bool(name) and name not in (".", "..") and not set(name) & set("/\\\0")
