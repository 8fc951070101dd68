"""The files of a demonstrations folder: shards that are there whole or not at all, and the writer's lock."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from rllib_vlm.data.images import Codec
from rllib_vlm.data.schema import SCHEMA, RecordedEpisode, to_table
from rllib_vlm.errors import DataError

LOCK = ".lock"
TEMPORARY = ".tmp-"
_SHARD = re.compile(r"episodes-(\d{8})-(\d{8})\.parquet")


class ShardBuffer:
    """Collects consecutive episodes and writes them as one shard when closed, also after an error.

    Several processes may each fill their own range of one folder.
    """

    def __init__(self, directory: Path, codec: Codec) -> None:
        self._directory = directory
        self._codec = codec
        self._first = 0
        self._tables: list[pa.Table] = []

    def __len__(self) -> int:
        return len(self._tables)

    @property
    def next_index(self) -> int:
        """The episode that would follow the last one added."""
        return self._first + len(self._tables)

    def add(self, episode: RecordedEpisode) -> None:
        """Adds the next episode.

        Raises:
            DataError: it does not follow the one before.
        """
        if not self._tables:
            self._first = episode.index
        elif episode.index != self.next_index:
            raise DataError(f"episode {episode.index} does not follow {self.next_index - 1} in one shard")
        self._tables.append(to_table(episode, self._codec))

    def flush(self) -> None:
        """Writes what was added, if anything, and starts anew."""
        if not self._tables:
            return
        name = f"episodes-{self._first:08d}-{self.next_index:08d}.parquet"
        write_atomically(self._directory / name, self._write)
        self._tables = []

    def _write(self, file: IO[bytes]) -> None:
        # One row group per episode: an episode is read, or skipped, without touching its neighbours.
        # Images are compressed already; compressing them again costs time and gains nothing.
        images = ("images.list.element", "final_images.list.element")
        compression = {_leaf(name): "zstd" for name in SCHEMA.names} | dict.fromkeys(images, "none")
        with pq.ParquetWriter(
            file, SCHEMA, compression=compression, use_dictionary=False, write_statistics=False
        ) as writer:
            for table in self._tables:
                writer.write_table(table, row_group_size=table.num_rows)

    def __enter__(self) -> ShardBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()


def list_shards(directory: Path, planned: int) -> list[tuple[Path, int, int]]:
    """(file, first, end) of every shard, in order; raises `DataError` where they overlap or exceed the plan."""
    shards: list[tuple[Path, int, int]] = []
    for path in sorted(directory.glob("*.parquet")):
        match = _SHARD.fullmatch(path.name)
        if match is None:
            raise DataError(f"{path} is no shard of demonstrations: move it out of the folder.")
        first, end = int(match[1]), int(match[2])
        if not first < end <= planned:
            raise DataError(f"{path} is outside the {planned} planned episodes: move it out of the folder.")
        if shards and first < shards[-1][2]:
            raise DataError(f"{path} and {shards[-1][0].name} hold the same episodes: delete one of them.")
        shards.append((path, first, end))
    return shards


def _leaf(name: str) -> str:
    """Parquet's path of a column's values."""
    return f"{name}.list.element" if pa.types.is_list(SCHEMA.field(name).type) else name


def lock_folder(directory: Path) -> IO[bytes]:
    file = (directory / LOCK).open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise DataError(
            f"{directory} is being written to by another process: wait for it, or end it."
        ) from error
    return file


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself
    finally:
        os.close(folder)
