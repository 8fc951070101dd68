"""Packing: rows of many lengths into few rows of one length, and back.

A batch is a dict of arrays, each [B, ...]. Per-token columns [B, L]: `token_ids`, `segment_ids` (1..k
along a packed row, 0 is padding), `row_ids` (the source row, -1 is padding), and those of `Row`.
Images: `images` uint8 [B, I, H, W, 3], zero-padded at the bottom and right, and `image_sizes`
[B, I, 2], (0, 0) where there is none; in the order of the placeholders along the packed row.

Two rows of 4 and 3 tokens, packed into L = 8::

    segment_ids = [[1, 1, 1, 1, 2, 2, 2, 0]]
    row_ids     = [[0, 0, 0, 0, 1, 1, 1, -1]]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rllib_vlm.batching.rows import NUM_LABELS, Row
from rllib_vlm.errors import RLlibVLMError

if TYPE_CHECKING:
    import torch

Batch = dict[str, NDArray[Any]]

# Column of `Row` -> (dtype, what stands at padding).
TOKEN_COLUMNS: dict[str, tuple[type[np.generic], int]] = {
    "token_ids": (np.int64, 0),
    "loss_mask": (np.bool_, 0),
    "value_mask": (np.bool_, 0),
    "loss_weights": (np.float32, 0),
    "old_logprobs": (np.float32, 0),
    "advantages": (np.float32, 0),
    "returns": (np.float32, 0),
    "old_values": (np.float32, 0),
    "policy_versions": (np.int64, -1),
    "turn_ids": (np.int64, -1),
    "turn_ends": (np.bool_, 0),
    "grounding_mask": (np.bool_, 0),
    "referring_mask": (np.bool_, 0),
    "labels": (np.int64, -1),
}
_WIDE = {"labels": (NUM_LABELS,)}  # columns with several values a token


def pack(
    rows: Sequence[Row],
    *,
    max_tokens: int,
    max_images: int | None = None,
    pad_to_multiple: int = 1,
    pad_token_id: int = 0,
) -> Batch:
    """Rows packed by first fit decreasing: long rows first, each into the first packed row with room.

    Needs at most 11/9 of the optimal number of packed rows (plus a fraction) and is deterministic.
    Inside a packed row, and among packed rows, the order of `rows` is kept as far as possible.

    Args:
        rows: any number, also none.
        max_tokens: of one packed row.
        max_images: of one packed row; None is no limit. Every packed row is padded to the largest count.
        pad_to_multiple: L is rounded up to a multiple, so that few different lengths occur.
        pad_token_id: stands in `token_ids` at padding.

    Raises:
        RLlibVLMError: one row alone exceeds a budget.
    """
    return _lay_out(rows, _first_fit_decreasing(rows, max_tokens, max_images), pad_to_multiple, pad_token_id)


def pad(rows: Sequence[Row], *, pad_to_multiple: int = 1, pad_token_id: int = 0) -> Batch:
    """One row of the batch per row, in the same order, padded at the end; same columns as `pack`."""
    return _lay_out(rows, [[i] for i in range(len(rows))], pad_to_multiple, pad_token_id)


def unpack(batch: Mapping[str, NDArray[Any]]) -> list[Row]:
    """The rows that went into `pack` or `pad`, in their order (rows a slice left out are skipped)."""
    images = {}
    for b in range(len(batch["row_ids"])):
        images[b] = [
            batch["images"][b, i, :h, :w] for i, (h, w) in enumerate(batch["image_sizes"][b]) if h and w
        ]
    rows: dict[int, Row] = {}
    for b, where, source in _segments(batch):
        taken = int(batch["image_counts"][b, int(batch["segment_ids"][b, where.start]) - 1])
        own, images[b] = images[b][:taken], images[b][taken:]
        rows[source] = Row(
            **{name: batch[name][b, where] for name in TOKEN_COLUMNS},
            images=tuple(own),
        )
    return [rows[source] for source in sorted(rows)]


def unpack_column(batch: Mapping[str, NDArray[Any]], column: NDArray[Any]) -> list[NDArray[Any]]:
    """A per-token array [B, L] computed from the batch (values, say) as one [L] per source row, in order."""
    found = {source: column[b, where] for b, where, source in _segments(batch)}
    return [found[source] for source in sorted(found)]


def pad_batch(batch: Mapping[str, NDArray[Any]], size: int, *, pad_token_id: int = 0) -> Batch:
    """The batch with rows of nothing but padding appended until B = `size`.

    Learners that train together must take the same number of steps; rows of padding add nothing to any
    loss or normaliser.

    Raises:
        RLlibVLMError: the batch is already larger.
    """
    have = len(batch["token_ids"])
    if size < have:
        raise RLlibVLMError(f"A batch of {have} rows cannot be padded to {size}; the nearest size is {have}.")
    fill = {name: default for name, (_, default) in TOKEN_COLUMNS.items()} | {
        "token_ids": pad_token_id,
        "row_ids": -1,
    }
    return {
        name: np.concatenate(
            [array, np.full((size - have, *array.shape[1:]), fill.get(name, 0), array.dtype)]
        )
        if size > have
        else array
        for name, array in batch.items()
    }


def to_torch(
    batch: Mapping[str, NDArray[Any]], device: str | torch.device = "cpu"
) -> dict[str, torch.Tensor]:
    """The same columns as tensors; on the CPU they share memory with the arrays."""
    import torch  # the rest of batching works where torch is not needed

    return {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in batch.items()}


def _first_fit_decreasing(rows: Sequence[Row], max_tokens: int, max_images: int | None) -> list[list[int]]:
    """Source rows of every packed row."""
    lengths = np.array([len(row) for row in rows], np.int64)
    counts = np.array([len(row.images) for row in rows], np.int64)
    image_limit = np.iinfo(np.int64).max if max_images is None else max_images
    for i, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        if length > max_tokens or count > image_limit:
            raise RLlibVLMError(
                f"Row {i} has {length} tokens and {count} images, a packed row holds {max_tokens} tokens and "
                f"{max_images if max_images is not None else 'any number of'} images. Raise the budget to "
                "at least that, or lower the prompt or answer limit."
            )
    tokens_left = np.zeros(len(rows), np.int64)  # of the packed rows opened so far, at most one per row
    images_left = np.zeros(len(rows), np.int64)
    bins: list[list[int]] = []
    for i in np.argsort(-lengths, kind="stable"):
        opened = len(bins)
        fits = (tokens_left[:opened] >= lengths[i]) & (images_left[:opened] >= counts[i])
        b = int(fits.argmax()) if opened and fits.any() else opened
        if b == opened:
            bins.append([])
            tokens_left[b], images_left[b] = max_tokens, image_limit
        bins[b].append(int(i))
        tokens_left[b] -= lengths[i]
        images_left[b] -= counts[i]
    return sorted(sorted(b) for b in bins)


def _lay_out(
    rows: Sequence[Row], bins: Sequence[Sequence[int]], pad_to_multiple: int, pad_token_id: int
) -> Batch:
    longest = max((sum(len(rows[i]) for i in b) for b in bins), default=0)
    shape = (len(bins), -(-longest // pad_to_multiple) * pad_to_multiple)
    batch: Batch = {
        name: np.full((*shape, *_WIDE.get(name, ())), pad_token_id if name == "token_ids" else default, dtype)
        for name, (dtype, default) in TOKEN_COLUMNS.items()
    }
    batch["segment_ids"] = np.zeros(shape, np.int64)
    batch["row_ids"] = np.full(shape, -1, np.int64)
    batch["image_counts"] = np.zeros((len(bins), max((len(b) for b in bins), default=0)), np.int64)
    for b, members in enumerate(bins):
        start = 0
        for segment, i in enumerate(members):
            where = (b, slice(start, start + len(rows[i])))
            for name in TOKEN_COLUMNS:
                batch[name][where] = getattr(rows[i], name)
            batch["segment_ids"][where] = segment + 1
            batch["row_ids"][where] = i
            batch["image_counts"][b, segment] = len(rows[i].images)
            start += len(rows[i])
    return batch | _image_columns([[image for i in b for image in rows[i].images] for b in bins])


def _image_columns(images: Sequence[Sequence[NDArray[np.uint8]]]) -> Batch:
    count = max((len(per_row) for per_row in images), default=0)
    height = max((image.shape[0] for per_row in images for image in per_row), default=0)
    width = max((image.shape[1] for per_row in images for image in per_row), default=0)
    pixels = np.zeros((len(images), count, height, width, 3), np.uint8)
    sizes = np.zeros((len(images), count, 2), np.int64)
    for b, per_row in enumerate(images):
        for i, image in enumerate(per_row):
            h, w = image.shape[:2]
            pixels[b, i, :h, :w] = image
            sizes[b, i] = h, w
    return {"images": pixels, "image_sizes": sizes}


def _segments(batch: Mapping[str, NDArray[Any]]) -> list[tuple[int, slice, int]]:
    """(row of the batch, its tokens, source row) of every segment, in reading order."""
    found = []
    for b, segments in enumerate(batch["segment_ids"]):
        edges = np.flatnonzero(np.diff(segments, prepend=0, append=0))
        for start, end in pairwise(edges):
            found.append((b, slice(int(start), int(end)), int(batch["row_ids"][b, start])))
    return found
