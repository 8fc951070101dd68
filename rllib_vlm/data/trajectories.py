"""Trajectories in a Parquet file: demonstrations a run keeps to read them again, also after it was interrupted.

One row is one trajectory: its turns as JSON, in which an array is its number, and the arrays beside it. Kept is what
a learner imitates from: prompts, answers and rewards. What the simulator told for credit (`anchor`, `state`, `info`)
is not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rllib_vlm.errors import DataError
from rllib_vlm.types import Completion, ParsedAction, Prompt, Trajectory, Turn

_DTYPES = ("int64", "float32", "uint8")
_ARRAY = pa.struct({"dtype": pa.string(), "shape": pa.list_(pa.int32()), "data": pa.binary()})
_SCHEMA = pa.schema(
    [
        pa.field("trajectory", pa.string(), nullable=False),
        pa.field("arrays", pa.list_(_ARRAY), nullable=False),
    ]
)
_AT_ONCE = 16  # trajectories of a row group: what is held twice in memory while it is written or read


def write_trajectories(path: Path, trajectories: Sequence[Trajectory]) -> None:
    """Writes `path`; what was there before is replaced.

    Raises:
        OSError: the disk is full or fails.
    """
    # Level 1 of zstd takes rendered pictures to a fraction of their size faster than most disks write.
    options = {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": False,
        "write_page_checksum": True,
    }
    with pq.ParquetWriter(path, _SCHEMA, **options) as writer:
        for start in range(0, len(trajectories), _AT_ONCE):
            rows = [_to_row(trajectory) for trajectory in trajectories[start : start + _AT_ONCE]]
            writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))


def read_trajectories(path: Path) -> Iterator[Trajectory]:
    """What `write_trajectories` wrote, in its order.

    Raises:
        DataError: the file is torn, or holds something else.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if not file.schema_arrow.equals(_SCHEMA):
                raise DataError(f"{path} holds no trajectories: its columns are {file.schema_arrow.names}")
            for batch in file.iter_batches(_AT_ONCE):
                yield from map(_from_row, batch.to_pylist())
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged: {error}") from error


class _Arrays:
    """The arrays of a trajectory, each once: a picture stands in the prompts of many turns."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._numbers: dict[int, int] = {}

    def number(self, array: NDArray[Any]) -> int:
        if id(array) not in self._numbers:
            if array.dtype.name not in _DTYPES:
                raise DataError(f"trajectories hold no arrays of {array.dtype}")
            self._numbers[id(array)] = len(self.rows)
            self.rows.append({"dtype": array.dtype.name, "shape": list(array.shape), "data": array.tobytes()})
        return self._numbers[id(array)]


def _to_row(trajectory: Trajectory) -> dict[str, Any]:
    arrays = _Arrays()
    whole = {
        "group": trajectory.group,
        "terminated": trajectory.terminated,
        "truncated": trajectory.truncated,
        "success": trajectory.success,
        "turns": [_turn_to_json(turn, arrays) for turn in trajectory.turns],
    }
    return {"trajectory": json.dumps(whole), "arrays": arrays.rows}


def _turn_to_json(turn: Turn, arrays: _Arrays) -> dict[str, Any]:
    prompt, completion = turn.prompt, turn.completion
    return {
        "prompt": {
            "token_ids": arrays.number(prompt.token_ids),
            "images": [arrays.number(image) for image in prompt.images],
            "text": prompt.text,
            "dropped_turns": prompt.dropped_turns,
            "shown": None if prompt.shown is None else arrays.number(prompt.shown),
        },
        "completion": {
            "token_ids": arrays.number(completion.token_ids),
            "logprobs": arrays.number(completion.logprobs),
            "policy_version": int(completion.policy_version),
            "finish_reason": completion.finish_reason,
            "text": completion.text,
        },
        "parsed": asdict(turn.parsed),
        "reward": float(turn.reward),
    }


def _from_row(row: dict[str, Any]) -> Trajectory:
    whole, arrays = json.loads(row["trajectory"]), [_array(**a) for a in row["arrays"]]
    turns = tuple(_turn_from_json(turn, arrays) for turn in whole.pop("turns"))
    return Trajectory(turns=turns, **whole)


def _array(dtype: str, shape: list[int], data: bytes) -> NDArray[Any]:
    if dtype not in _DTYPES:
        raise DataError(f"trajectories hold no arrays of {dtype}")
    return np.frombuffer(data, dtype).reshape(shape).copy()  # to be written to, as the ones that were saved


def _turn_from_json(turn: dict[str, Any], arrays: list[NDArray[Any]]) -> Turn:
    prompt, completion, parsed = turn["prompt"], turn["completion"], turn["parsed"]
    shown = prompt["shown"]
    return Turn(
        prompt=Prompt(
            **prompt
            | {
                "token_ids": arrays[prompt["token_ids"]],
                "images": tuple(arrays[i] for i in prompt["images"]),
                "shown": None if shown is None else arrays[shown],
            }
        ),
        completion=Completion(
            **completion
            | {
                "token_ids": arrays[completion["token_ids"]],
                "logprobs": arrays[completion["logprobs"]],
            }
        ),
        parsed=ParsedAction(
            **parsed
            | {
                "actions": tuple(parsed["actions"]),
                "spans": {part: (first, end) for part, (first, end) in parsed["spans"].items()},
            }
        ),
        reward=turn["reward"],
    )
