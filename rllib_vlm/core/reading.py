"""Rows read once without gradient, in pieces that fit: values, log-probs, a reference's log-probs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from rllib_vlm.batching.micro import micro_batches
from rllib_vlm.batching.packing import pack, pad, to_torch, unpack_column
from rllib_vlm.batching.rows import Row

_ROWS_AT_A_TIME = 256  # bounds the memory of the images laid out at once
Column = NDArray[np.float32]  # [L] of a row


@torch.no_grad()
def read_rows(
    rows: Sequence[Row],
    read: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]],
    names: Sequence[str],
    *,
    device: torch.device,
    row_tokens: int | None,
    micro_batch_tokens: int,
) -> dict[str, list[Column]]:
    """[L] per row, in order, of each column in `names`.

    Args:
        rows: what is read.
        read: a packed batch to columns [B, L], `names` among them.
        names: of the columns that are wanted.
        device: of the batches.
        row_tokens: longest packed row; None: one segment a row.
        micro_batch_tokens: positions of one batch.
    """
    found: dict[str, dict[int, Column]] = {name: {} for name in names}
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        some = rows[start : start + _ROWS_AT_A_TIME]
        packed = pad(some) if row_tokens is None else pack(some, max_tokens=row_tokens)
        for piece in micro_batches(packed, max_tokens=micro_batch_tokens):
            out = read(to_torch(piece, device))
            sources = start + np.unique(piece["row_ids"][piece["row_ids"] >= 0])
            for name in names:
                columns = unpack_column(piece, out[name].float().cpu().numpy())
                found[name] |= zip(sources.tolist(), columns, strict=True)
    return {name: [columns[i] for i in range(len(rows))] for name, columns in found.items()}
