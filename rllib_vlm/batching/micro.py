"""Micro-batches: a packed batch cut along its rows into pieces that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllib_vlm.batching.packing import Batch
from rllib_vlm.errors import RLlibVLMError


def micro_batches(
    batch: Mapping[str, NDArray[Any]], *, max_tokens: int, count: int | None = None
) -> Iterator[Batch]:
    """Pieces of at most `max_tokens` positions (rows x longest used length), padding included.

    Rows are taken by descending used length, so that rows of one piece are about equally long, and
    each piece is cut to the length and the number and size of images it uses. All positions of a
    segment are in one piece, all rows in exactly one; `row_ids` still says where each came from.
    A single row longer than `max_tokens` is a piece of its own.

    Args:
        batch: as from `packing.pack` or `packing.pad`.
        max_tokens: positions of one piece.
        count: give exactly this many pieces, the last ones of one row of padding each, for engines in
            which all learners must run equally many forward passes; None is as many as needed.

    Raises:
        RLlibVLMError: `count` is smaller than needed.
    """
    used = (batch["segment_ids"] > 0).sum(1)
    order = np.argsort(-used, kind="stable")
    order = order[used[order] > 0]  # rows of nothing but padding teach nothing
    pieces: list[NDArray[np.int64]] = []
    start = 0
    while start < len(order):
        size = max(1, max_tokens // int(used[order[start]]))
        pieces.append(np.sort(order[start : start + size]))
        start += size
    if count is not None and count < len(pieces):
        raise RLlibVLMError(
            f"The batch needs {len(pieces)} micro-batches of {max_tokens} tokens, {count} were asked for. "
            f"Ask for {len(pieces)}, or raise max_tokens."
        )
    for piece in pieces:
        yield _trim({name: array[piece] for name, array in batch.items()})
    for _ in range((count or 0) - len(pieces)):
        yield _blank(batch)


def _trim(piece: Batch) -> Batch:
    """Without the padding that all rows share at the end of each dimension."""
    length = int((piece["segment_ids"] > 0).sum(1).max(initial=0))
    images = int((piece["image_sizes"][..., 0] > 0).sum(1).max(initial=0))
    height, width = piece["image_sizes"].reshape(-1, 2).max(axis=0, initial=0)
    segments = int(piece["segment_ids"].max(initial=0))
    positions = piece["segment_ids"].shape
    out = {
        name: array[:, :length] if array.shape[:2] == positions else array
        for name, array in piece.items()
        if name not in {"images", "image_sizes", "image_counts"}
    }
    out["images"] = piece["images"][:, :images, :height, :width]
    out["image_sizes"] = piece["image_sizes"][:, :images]
    out["image_counts"] = piece["image_counts"][:, :segments]
    return out


def _blank(batch: Mapping[str, NDArray[Any]]) -> Batch:
    """One position of padding, without images: a forward pass at the lowest price."""
    positions = batch["segment_ids"].shape
    blank = {name: np.zeros((1, *a.shape[1:]), a.dtype) for name, a in batch.items() if name != "images"}
    blank = {name: a[:, :1] if batch[name].shape[:2] == positions else a for name, a in blank.items()}
    blank["image_sizes"] = blank["image_sizes"][:, :0]
    blank["image_counts"] = blank["image_counts"][:, :1]
    blank["images"] = np.zeros((1, 0, *batch["images"].shape[2:]), np.uint8)
    for name in ("row_ids", "turn_ids", "policy_versions", "labels"):
        blank[name][:] = -1
    return blank
