"""Rows read once without gradient, in pieces that fit: values, log-probs, a reference's log-probs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from rllib_vlm.batching.packing import pack, pad, to_torch, unpack_column
from rllib_vlm.batching.rows import Row
from rllib_vlm.core.engines.lockstep import Lockstep, pieces_of

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
    lockstep: Lockstep | None = None,
) -> dict[str, list[Column]]:
    """[L] per row, in order, of each column in `names`.

    Args:
        rows: what is read.
        read: a packed batch to columns [B, L], `names` among them.
        names: of the columns that are wanted.
        device: of the batches.
        row_tokens: longest packed row; None: one segment a row.
        micro_batch_tokens: positions of one batch.
        lockstep: with the other learners, where their reading needs each other.
    """
    found: dict[str, dict[int, Column]] = {name: {} for name in names}
    rounds = -(-len(rows) // _ROWS_AT_A_TIME)
    for start in range(
        0, _ROWS_AT_A_TIME * (lockstep.rounds(rounds) if lockstep else rounds), _ROWS_AT_A_TIME
    ):
        some = rows[start : start + _ROWS_AT_A_TIME]
        packed = None
        if some:
            packed = pad(some) if row_tokens is None else pack(some, max_tokens=row_tokens)
        for piece in pieces_of(packed, max_tokens=micro_batch_tokens, lockstep=lockstep):
            out = read(to_torch(piece, device))
            sources = start + np.unique(piece["row_ids"][piece["row_ids"] >= 0])
            for name in names if len(sources) else ():
                columns = unpack_column(piece, out[name].float().cpu().numpy())
                found[name] |= zip(sources.tolist(), columns, strict=True)
    return {name: [columns[i] for i in range(len(rows))] for name, columns in found.items()}
