"""A set of routes with its panoramas, from a folder in V-IRL's layout or from a synthetic city.

FOLDER/route_infos.json                              [[route, ...], count]
FOLDER/gps_pano_mapping.pkl (or .json)               place -> panorama id
FOLDER/street_views/                                 panoramas, see `imagery`
FOLDER/splits.json                                   ours, may be missing: split -> route numbers, or a folder
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from rllib_vlm.errors import DataError
from rllib_vlm.sims.streetview.geo import PanoramaIndex
from rllib_vlm.sims.streetview.imagery import FOLDER, CachedSource, FolderSource, PanoramaSource
from rllib_vlm.sims.streetview.mapping import read_mapping
from rllib_vlm.sims.streetview.routes import Route, parse_route, read_records

Split = Literal["train", "heldout", "rule_ood", "visual_ood"]
SPLITS: tuple[Split, ...] = get_args(Split)
ROUTES, SPLITS_FILE = "route_infos.json", "splits.json"
_HELDOUT_SHARE = 10  # where a folder names no splits, one route in this many is held out


@dataclass(frozen=True, eq=False)
class DataSet:
    """Routes, where panoramas stand, and their pictures."""

    name: str
    routes: Sequence[Route]
    index: PanoramaIndex
    source: PanoramaSource
    splits: Mapping[str, Sequence[int]] = field(default_factory=dict)  # route numbers
    others: Mapping[str, Callable[[], DataSet]] = field(
        default_factory=dict
    )  # splits that are other data sets

    def beside(self, name: str, other: DataSet) -> DataSet:
        """This one, with `other` as the split `name`."""
        return replace(self, others={**self.others, name: lambda: other})

    def split(self, name: str, *, whole: bool = False) -> tuple[DataSet, Sequence[int]]:
        """The data set a split lies in, and its route numbers there.

        Args:
            name: of the split.
            whole: where the data set names no splits, every split has all of its routes, as with V-IRL.

        Raises:
            DataError: there is no such split, or it is empty.
        """
        if name in self.others:
            other = self.others[name]()
            return other, range(len(other.routes))
        if self.splits:
            numbers = self.splits.get(name, ())
        elif whole:
            numbers = range(len(self.routes))
        else:
            numbers = [i for i, route in enumerate(self.routes) if _of_split(route, name)]
        if not numbers:
            known = sorted({*self.splits, *self.others}) or ["train", "heldout", "rule_ood"]
            way_out = " Name a folder: env_config: {visual_ood: DIR}." if name == "visual_ood" else ""
            raise DataError(
                f"{self.name} has no routes in the split {name!r}. It has: {', '.join(known)}.{way_out}"
            )
        return self, numbers


def _of_split(route: Route, split: str) -> bool:
    heldout = zlib.crc32(repr((route.start, route.geocodes)).encode()) % _HELDOUT_SHARE == 0
    return split in (("heldout", "rule_ood") if heldout else ("train",))


def open_folder(folder: str | Path) -> DataSet:
    """The data set of a folder; simulators of one process share it while its files stay as they are.

    Raises:
        DataError: a file is missing or broken, with what is wrong with the first broken route.
    """
    folder = Path(folder)
    stamps = tuple(
        (file.stat().st_mtime_ns if (file := folder / name).is_file() else 0)
        for name in (ROUTES, SPLITS_FILE)
    )
    return _open(folder.resolve(), stamps)


@lru_cache(maxsize=8)
def _open(folder: Path, stamps: tuple[int, ...]) -> DataSet:
    routes = []
    problems = []
    for number, record in enumerate(read_records(folder / ROUTES)):
        try:
            routes.append(parse_route(record))
        except DataError as error:
            problems.append(f"route {number}: {error}")
    if problems:
        raise DataError(
            f"{folder / ROUTES}: {len(problems)} broken routes, the first: {problems[0]}. "
            f"`rllib data check {folder}` lists all."
        )
    splits, others = read_splits(folder, len(routes))
    return DataSet(
        name=str(folder),
        routes=routes,
        index=PanoramaIndex(read_mapping(folder)),
        source=CachedSource(FolderSource(folder / FOLDER)),
        splits=splits,
        others={name: _opener(folder / other) for name, other in others.items()},
    )


def _opener(folder: Path) -> Callable[[], DataSet]:
    return lambda: open_folder(folder)


def read_splits(folder: Path, count: int) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Splits by route numbers, and those that are folders, of `splits.json` if there is one.

    Raises:
        DataError: it is broken, names a route there is not, or one route in two splits.
    """
    file = folder / SPLITS_FILE
    if not file.is_file():
        return {}, {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: not a mapping of splits but a {type(content).__name__}")
    splits: dict[str, list[int]] = {}
    others: dict[str, str] = {}
    taken: dict[int, str] = {}
    for name, value in content.items():
        if isinstance(value, str) and value and not set(value) & set("/\\\0") and value not in (".", ".."):
            others[name] = value
            continue
        if not isinstance(value, list):
            raise DataError(f"{file}: {name} is {value!r}, neither route numbers nor a folder's name")
        for number in value:
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
                raise DataError(f"{file}: {name} has {number!r}, not a route's number from 0 to {count - 1}")
            if number in taken:
                raise DataError(f"{file}: route {number} is in {name} and in {taken[number]}")
            taken[number] = name
        splits[name] = value
    return splits, others
