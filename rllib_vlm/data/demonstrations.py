"""Reads and writes demonstrations folders; the format is docs/demonstrations.md.

A shard file holds a range of episodes and says so in its name. It appears whole or not at all
(written beside, flushed to the disk, renamed), so the files that are there say which episodes are.

Example::

    manifest = Manifest(simulator="frozen_lake", seeds=tuple(range(100)), expert={"max_actions": 1})
    with DemonstrationWriter("runs/lake", manifest) as writer:
        for index in writer.missing:                       # all 100, or what an earlier run left out
            writer.write(play(index, manifest.seeds[index]))
    for episode in DemonstrationReader("runs/lake").iterate(shuffle=True, successful_only=True):
        ...
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rllib_vlm.data.schema import (
    ADDED,
    MANIFEST,
    SCHEMA,
    Manifest,
    RecordedEpisode,
    RecordedTurn,
    from_table,
    projection,
)
from rllib_vlm.data.shards import LOCK, TEMPORARY, ShardBuffer, list_shards, lock_folder, write_text
from rllib_vlm.errors import DataError

__all__ = [
    "DemonstrationReader",
    "DemonstrationWriter",
    "Manifest",
    "RecordedEpisode",
    "RecordedTurn",
    "ShardBuffer",
]

_OPEN_FILES = 16
_AGAIN = "Delete it and run `rllib demos` again with the same arguments: only what is missing is collected."


class DemonstrationWriter:
    """Opens or continues a demonstrations folder; one process at a time.

    Args:
        directory: made if it is missing.
        manifest: where the episodes come from; must agree with what the folder already holds.
        episodes_per_shard: episodes a file holds, and at most are lost if the process is killed.

    Raises:
        DataError: the folder is foreign, damaged, of other settings, or being written to.
    """

    def __init__(self, directory: str | Path, manifest: Manifest, *, episodes_per_shard: int = 32) -> None:
        self.directory = Path(directory)
        manifest.check(self.directory)
        self._episodes_per_shard = episodes_per_shard
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(self.directory)
        try:
            self.manifest = self._continue(manifest)
            self._left = dict.fromkeys(self._missing())
        except BaseException:
            self._lock.close()
            raise
        self.buffer = ShardBuffer(self.directory, manifest.image_codec)

    @property
    def missing(self) -> tuple[int, ...]:
        """The planned episodes that are not written yet, in order."""
        return tuple(self._left)

    def write(self, episode: RecordedEpisode) -> None:
        """Writes one of the missing episodes; they may come in any order.

        Raises:
            DataError: the episode is not one of the missing ones.
        """
        if episode.index not in self._left:
            raise DataError(f"episode {episode.index} is already written, or not planned in {self.directory}")
        if len(self.buffer) and episode.index != self.buffer.next_index:
            self.buffer.flush()
        self.buffer.add(episode)
        del self._left[episode.index]
        if len(self.buffer) >= self._episodes_per_shard:
            self.buffer.flush()

    def ranges(self) -> list[tuple[int, int]]:
        """The missing episodes as (first, end) ranges of at most a shard each."""
        ranges: list[tuple[int, int]] = []
        for index in self._left:
            if ranges and index == ranges[-1][1] and index - ranges[-1][0] < self._episodes_per_shard:
                ranges[-1] = (ranges[-1][0], index + 1)
            else:
                ranges.append((index, index + 1))
        return ranges

    def close(self) -> Manifest:
        """Writes what is buffered, brings the manifest's counts up to date, and lets go of the folder."""
        if self._lock.closed:
            return self.manifest
        try:
            self.buffer.flush()
            with DemonstrationReader(self.directory, allow_partial=True) as reader:
                self.manifest = replace(self.manifest, **reader.count())  # type: ignore[arg-type]
            write_text(self.directory / MANIFEST, self.manifest.to_json())
        finally:
            self._lock.close()
        return self.manifest

    def __enter__(self) -> DemonstrationWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _continue(self, wanted: Manifest) -> Manifest:
        path = self.directory / MANIFEST
        for stale in self.directory.glob(f"{TEMPORARY}*"):  # of a writer that was killed; we hold the lock
            stale.unlink()
        if not path.exists():
            others = sorted(p.name for p in self.directory.iterdir() if p.name != LOCK)
            if others:
                raise DataError(
                    f"{self.directory} is not empty ({others[0]!r}, ...) and has no {MANIFEST}: choose another folder."
                )
            write_text(path, wanted.to_json())
            return wanted
        found = Manifest.from_json(path.read_text(encoding="utf-8"), path)
        for key, value in wanted.identity().items():
            if found.identity()[key] != value:
                raise DataError(
                    f"{self.directory} holds demonstrations with {key} = {found.identity()[key]!r}, not {value!r}: "
                    "ask for the same settings to continue it, or choose another folder."
                )
        if wanted.seeds[: len(found.seeds)] != found.seeds:
            raise DataError(
                f"{self.directory} was planned for {len(found.seeds)} seeds from {found.seeds[0]} on, and these are "
                f"{len(wanted.seeds)} from {wanted.seeds[0]} on: seeds may be added at the end only. "
                "Ask for the same ones and maybe more, or choose another folder."
            )
        if wanted.seeds != found.seeds:
            found = replace(found, seeds=wanted.seeds)
            write_text(path, found.to_json())
        return found

    def _missing(self) -> list[int]:
        written = {
            i
            for _, first, end in list_shards(self.directory, len(self.manifest.seeds))
            for i in range(first, end)
        }
        return [i for i in range(len(self.manifest.seeds)) if i not in written]


class DemonstrationReader:
    """Whole episodes of a demonstrations folder, in order, shuffled or by index.

    Args:
        directory: a folder that `rllib demos` wrote.
        allow_partial: whether episodes may be missing (collection still runs, or was interrupted).

    Raises:
        DataError: the folder is missing, foreign, torn, newer than this package, or incomplete.
    """

    def __init__(self, directory: str | Path, *, allow_partial: bool = False) -> None:
        self.directory = Path(directory)
        self._allow_partial = allow_partial
        path = self.directory / MANIFEST
        if not path.is_file():
            what = "has no manifest.json" if self.directory.is_dir() else "does not exist"
            raise DataError(f"{self.directory} {what}: write demonstrations with `rllib demos` first.")
        self.manifest = Manifest.from_json(path.read_text(encoding="utf-8"), path)
        self._open: OrderedDict[Path, pq.ParquetFile] = OrderedDict()
        self._where: dict[int, tuple[Path, int]] = {}  # episode -> its file and row group
        for shard, first, end in list_shards(self.directory, len(self.manifest.seeds)):
            self._check(shard, end - first)
            self._where |= {index: (shard, index - first) for index in range(first, end)}
        missing = len(self.manifest.seeds) - len(self._where)
        if missing and not allow_partial:
            raise DataError(
                f"{self.directory} holds {len(self._where)} of {len(self.manifest.seeds)} episodes. Run `rllib demos` "
                "again with the same arguments to collect the rest, or read it with allow_partial=True."
            )

    def __len__(self) -> int:
        return len(self._where)

    def __iter__(self) -> Iterator[RecordedEpisode]:
        return self.iterate()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _open_reader, (self.directory, self._allow_partial)

    @property
    def indices(self) -> tuple[int, ...]:
        """The episodes that are there."""
        return tuple(self._where)

    def read(
        self, index: int, *, columns: Collection[str] | None = None, decode_images: bool = True
    ) -> RecordedEpisode:
        """One episode.

        Args:
            index: its position in the manifest's seeds.
            columns: what to read (see docs/demonstrations.md); the rest stays empty. None is everything.
            decode_images: False leaves images as compressed bytes.

        Raises:
            DataError: there is no such episode, or its bytes are damaged.
            UnknownNameError: there is no such column.
        """
        if index not in self._where:
            raise DataError(f"{self.directory} has no episode {index}; it has {len(self)} of them")
        path, group = self._where[index]
        names = projection(columns)
        try:
            table = self._file(path).read_row_group(group, columns=names, use_threads=False)
            episode = from_table(table, decode_images=decode_images)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{path} is damaged at episode {index} ({error}). {_AGAIN}") from error
        if episode.index != index:
            raise DataError(f"{path} holds episode {episode.index} where {index} belongs. {_AGAIN}")
        return episode

    def iterate(
        self,
        *,
        shuffle: bool = False,
        seed: int = 0,
        successful_only: bool = False,
        columns: Collection[str] | None = None,
        decode_images: bool = True,
    ) -> Iterator[RecordedEpisode]:
        """All episodes once.

        Args:
            shuffle: in an order drawn over the whole folder; the same `seed` gives the same order.
            seed: of the order.
            successful_only: leave out the episodes the expert did not solve.
            columns: as in `read`.
            decode_images: as in `read`.
        """
        order = np.array(self.successes() if successful_only else self.indices, dtype=np.int64)
        if shuffle:
            order = np.random.default_rng(seed).permutation(order)
        for index in order.tolist():
            yield self.read(index, columns=columns, decode_images=decode_images)

    def successes(self) -> tuple[int, ...]:
        """The episodes that the expert solved."""
        return tuple(i for i, success, _ in self._scan() if success)

    def count(self) -> dict[str, int]:
        """`episodes`, `turns` and `successes`, counted in the files."""
        rows = list(self._scan())
        return {
            "episodes": len(rows),
            "turns": sum(turns for _, _, turns in rows),
            "successes": sum(success for _, success, _ in rows),
        }

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def __enter__(self) -> DemonstrationReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _scan(self) -> Iterator[tuple[int, bool, int]]:
        """(episode, success, turns), of one column of each row group."""
        for index, (path, group) in self._where.items():
            success = self._file(path).read_row_group(group, columns=["success"], use_threads=False).column(0)
            yield index, bool(success[0].as_py()), len(success)

    def _check(self, path: Path, episodes: int) -> None:
        try:
            file = self._file(path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} is torn or not Parquet ({error}). {_AGAIN}") from error
        columns = file.schema_arrow
        expected = pa.schema([f for f in SCHEMA if f.name in columns.names or f.name not in ADDED])
        if not columns.equals(expected):
            raise DataError(f"{path} does not have the columns of this format. {_AGAIN}")
        if file.num_row_groups != episodes:
            raise DataError(
                f"{path} holds {file.num_row_groups} episodes, not {episodes} as its name says. {_AGAIN}"
            )

    def _file(self, path: Path) -> pq.ParquetFile:
        if path in self._open:
            self._open.move_to_end(path)
        else:
            self._open[path] = pq.ParquetFile(path, memory_map=True)
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)[1].close()
        return self._open[path]


def _open_reader(directory: Path, allow_partial: bool) -> DemonstrationReader:
    return DemonstrationReader(directory, allow_partial=allow_partial)
