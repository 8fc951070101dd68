"""Packed rows as one line of tokens, in which what several of them begin with stands once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rllib_vlm.models.qwen2_5_vl.decoder import attend


class Segments:
    """Where the segments of a batch lie, so that each attends to itself alone.

    Linear layers run over the tokens of all rows in one line, [1, N, D]: packing and padding cost them nothing. Nor do
    beginnings that segments have in common (the system message, the first observation of a group): what a causal
    model makes of a token follows from the tokens up to it, so the first segment's states are those of all, and
    their gradients add up there. The line is a few tokens longer than that, which nobody reads, so that batches come in
    few lengths: oneDNN compiles a kernel for each shape it meets, a fifth of the time of a small model on a processor
    with AMX. For attention the line is cut into segments [S, longest], those of similar length
    together, which stay causal without any mask, since padding stands behind.

    Args:
        segment_ids: int64 [B, L], 0 is padding.
        contents: int64 [B, L], two alike where the model reads the same: token ids, and at image tokens whose they are.
        read: bool [B, L], the tokens whose last states are wanted; None is all.

    Attributes:
        tokens: int64 [N], places in [B * L] of what stands in the line; what fills it up is its last token again.
        read: int64 [n], places in the line of the tokens whose last states are wanted.
    """

    def __init__(self, segment_ids: Tensor, contents: Tensor, read: Tensor | None = None) -> None:
        device = segment_ids.device
        ids, flat = segment_ids.cpu().numpy(), contents.cpu().numpy().flatten()
        rows = np.repeat(np.arange(len(ids)), ids.shape[1])
        places = np.flatnonzero(ids)  # of the real tokens in [B * L]
        starts = np.flatnonzero(np.diff(np.stack([rows, ids.flatten()])[:, places], prepend=-1).any(0))
        lengths = np.diff(starts, append=len(places))
        twin = _twins(flat[places], starts, lengths)
        first = twin == np.arange(len(places))
        where = (np.cumsum(first) - 1)[twin]  # each real token's place in the line
        wanted = slice(None) if read is None else read.cpu().numpy().flatten()[places]
        among, rank = np.unique(where[wanted], return_inverse=True)
        self.tokens, self.read = _tensors(device, _rounded(places[first]), _rounded(among))
        self._all, self._last = _tensors(device, places, where), _tensors(device, places[wanted], rank)
        # What to take of the line, how long a cut is, and what to keep of what comes out.
        self._cuts: list[tuple[Tensor, int, Tensor]] = []
        kept = []
        for alike in _of_similar_length(lengths):
            column = np.arange(lengths[alike[0]])
            real = column < lengths[alike, None]
            take = np.where(real, starts[alike, None] + column, 0).flatten()
            keep = np.flatnonzero(real.flatten() & first[take])
            kept.append(take[keep])
            line, own = _tensors(device, where[take], keep)
            self._cuts.append((line, len(column), own))
        order = np.concatenate([*kept, np.zeros(0, np.int64)]).argsort()
        (self._restore,) = _tensors(device, _rounded(order))

    def attend(self, _: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[1, H, N, d] of q [1, H, N, d] and k, v [1, G, N, d]."""
        if not self._cuts:  # padding alone
            return q
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # [N, heads, d], as the projections made them
        outputs = []
        for take, longest, keep in self._cuts:
            cut = [x.index_select(0, take).view(-1, longest, *x.shape[1:]).transpose(1, 2) for x in (q, k, v)]
            out = attend(cut[0], cut[1], cut[2], None).transpose(1, 2).flatten(0, 1)
            outputs.append(out.index_select(0, keep))
        return torch.cat(outputs).index_select(0, self._restore).transpose(0, 1)[None]

    def in_place(self, states: Tensor, like: Tensor) -> Tensor:
        """States [1, N, D] of the line as [B, L, D], a common beginning's in each segment; 0 at padding."""
        return _scattered(states, like, *self._all)

    def last_in_place(self, states: Tensor, like: Tensor) -> Tensor:
        """States [1, n, D] of what is read as [B, L, D]; 0 elsewhere."""
        return _scattered(states, like, *self._last)


def _scattered(states: Tensor, like: Tensor, places: Tensor, where: Tensor) -> Tensor:
    full = like.new_zeros(like.shape).flatten(0, 1)
    return full.index_copy(0, places, states[0].to(like.dtype).index_select(0, where)).view_as(like)


def _twins(
    contents: NDArray[np.int64], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.int64]:
    """[N] of each token the one that stands for it: in the first of the segments that are alike up to there.

    In the order of their contents, segments with a common beginning are neighbours.
    """
    twin = np.arange(len(contents))
    ends = starts + lengths
    order = sorted(range(len(starts)), key=lambda i: contents[starts[i] : ends[i]].tobytes())
    for a, b in pairwise(order):
        n = min(lengths[a], lengths[b])
        differ = contents[starts[a] : starts[a] + n] != contents[starts[b] : starts[b] + n]
        common = int(differ.argmax()) if differ.any() else int(n)
        twin[starts[b] : starts[b] + common] = twin[starts[a] : starts[a] + common]
    return twin


def _of_similar_length(lengths: NDArray[np.int64]) -> Sequence[NDArray[np.int64]]:
    """Segments by length, the longest first, together where none is shorter than 0.7 of the longest."""
    order = np.argsort(-lengths, kind="stable")
    parts = []
    while len(order):
        alike = lengths[order] >= 0.7 * lengths[order[0]]
        parts.append(order[alike])
        order = order[~alike]
    return parts


def _rounded(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Filled up to one of sixteen lengths an octave with the last place."""
    step = max(16, 1 << max(0, len(places).bit_length() - 5))
    return np.pad(places, (0, -len(places) % step), mode="edge")


def _tensors(device: torch.device, *arrays: NDArray[np.int64]) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(array).to(device) for array in arrays)
