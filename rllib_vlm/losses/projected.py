"""Log-probs and entropy of chosen tokens straight from an output layer's weights, tile by tile.

With V = 151,936 the float32 logits of 2,048 positions are 1.2 GiB, and every step from them to a loss makes an
array of that size again. Here a tile of [n, v] logits exists at a time. Its share of the normaliser is added up as
it passes (Milakov & Gimelshein 2018, arXiv 1805.02867); the backward pass makes the tile once more, turns it into its
gradient in place, and multiplies that into the gradients of states and weights (the order of Cut Cross-Entropy,
Wijmans et al. 2024, arXiv 2411.09009, without leaving anything out). Exact, to float precision.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rllib_vlm.losses.logprobs import SelectedLogprobs
from rllib_vlm.losses.masking import at_least_float32

# Logits of a tile: on a processor what its caches hold, elsewhere enough that launching kernels costs little.
_TILE = {"cpu": 2**20}
_LARGE_TILE = 2**25
_BANNED = -1e30  # e to it is 0, and unlike -inf it can be multiplied by that 0


def projected_logprobs(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    banned: Sequence[int] = (),
    with_entropy: bool = False,
    rows: int = 1024,
    tile: int | None = None,
    keep_bytes: int = 0,
) -> SelectedLogprobs:
    """Log-probs of `ids` under softmax(hidden @ weight.T / temperature) without the banned ids; with gradient.

    Numbers and gradients are those of `selected_logprobs` over the same logits. What is not kept is multiplied out
    again in the backward pass: four products of the size of the logits in place of three.

    Args:
        hidden: [N, D] at the positions that *predict* the tokens; N may be 0.
        weight: [V, D].
        ids: int64 [N].
        temperature: above 0.
        banned: sorted ids of probability 0. The log-prob of a banned id is -inf.
        with_entropy: also the entropies.
        rows: positions of a tile.
        tile: logits of a tile; by default by device.
        keep_bytes: logits kept for the backward pass, as many as fit.
    """
    if not len(ids):
        # Still part of the graph: a learner without data must take part in the backward pass.
        zeros = at_least_float32(hidden).sum(-1) * 0.0
        return SelectedLogprobs(logprobs=zeros, entropy=zeros if with_entropy else None)
    size = tile or _TILE.get(hidden.device.type, _LARGE_TILE)
    rows = min(rows, len(ids))
    tiles = _Tiles(len(ids), len(weight), rows, max(1, size // rows), tuple(banned), temperature)
    room = keep_bytes if torch.is_grad_enabled() else 0
    logprobs, entropy = _Projected.apply(hidden, weight, ids, tiles, with_entropy, room)
    return SelectedLogprobs(logprobs=logprobs, entropy=entropy if with_entropy else None)


class _Tiles:
    """How [N, V] logits are cut, and how one cut is made."""

    def __init__(
        self, count: int, vocab: int, rows: int, columns: int, banned: tuple[int, ...], temperature: float
    ) -> None:
        self._count, self._vocab, self._rows, self._columns = count, vocab, rows, columns
        self._banned, self.temperature = banned, temperature

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of each; all rows of some columns first, so that their weights are at hand."""
        for v in range(0, self._vocab, self._columns):
            for n in range(0, self._count, self._rows):
                yield (
                    slice(n, min(n + self._rows, self._count)),
                    slice(v, min(v + self._columns, self._vocab)),
                )

    def logits(self, hidden: Tensor, weight: Tensor, columns: slice) -> Tensor:
        """[n, v] of states [n, D] and the weights of `columns`, in at least float32."""
        logits = at_least_float32(F.linear(hidden, weight[columns]))
        if self.temperature != 1.0:
            logits /= self.temperature
        first, last = (bisect_left(self._banned, edge) for edge in (columns.start, columns.stop))
        if first < last:
            out = torch.tensor(self._banned[first:last], device=logits.device) - columns.start
            logits.index_fill_(1, out, _BANNED)
        return logits


class _Projected(torch.autograd.Function):
    """(log-probs [N], entropies [N] where asked for); see `projected_logprobs`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, tiles: _Tiles, entropy: bool, room: int
    ) -> tuple[Tensor, Tensor]:
        like = at_least_float32(hidden[:0])
        # Of the logits z so far: the largest, the sum of w = e^(z - largest), and that of w (z - largest).
        top, chosen = (like.new_full((len(ids),), _BANNED) for _ in range(2))
        total, moment = like.new_zeros(len(ids)), like.new_zeros(len(ids))
        kept: dict[int, Tensor] = {}
        for i, (rows, columns) in enumerate(tiles):
            logits = tiles.logits(hidden[rows], weight, columns)
            largest = torch.maximum(top[rows], logits.amax(-1))
            fallen = top[rows] - largest
            shifted = logits - largest[:, None]
            weights = shifted.exp()
            if entropy:
                before = fallen.exp() * (moment[rows] + fallen * total[rows])
                moment[rows] = before + shifted.mul_(weights).sum(-1)
            total[rows] = total[rows] * fallen.exp() + weights.sum(-1)
            top[rows] = largest
            inside, at = _places(ids[rows], columns)
            found = logits.gather(1, at)[:, 0]
            chosen[rows] = torch.where(inside, found, chosen[rows])
            size = logits.numel() * logits.element_size()
            if size <= room:
                kept[i] = logits
                room -= size
        logprobs = (chosen - top) - total.log()
        entropies = total.log() - moment / total
        ctx.save_for_backward(hidden, weight, ids, top + total.log(), entropies)
        ctx.tiles, ctx.kept = tiles, kept
        ctx.set_materialize_grads(False)
        return logprobs.masked_fill_(chosen <= _BANNED / 2, -torch.inf), entropies.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logprobs: Tensor | None, of_entropies: Tensor | None) -> tuple[Any, ...]:
        hidden, weight, ids, normalizer, entropies = ctx.saved_tensors
        tiles, kept = ctx.tiles, ctx.kept
        if of_logprobs is None and of_entropies is None:
            return (None,) * 6
        scale = 1.0 / tiles.temperature
        given = torch.zeros_like(normalizer) if of_logprobs is None else of_logprobs * scale
        # d/dz of g log p(id) + e H is g (1[id] - p) - e p (log p + H), elementwise over the vocabulary.
        slope = None if of_entropies is None else -scale * of_entropies[:, None]
        level = -given[:, None] if slope is None else slope * entropies[:, None] - given[:, None]
        to_hidden = at_least_float32(torch.zeros_like(hidden)) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for i, (rows, columns) in enumerate(tiles):
            logits = kept.pop(i, None)
            if logits is None:
                logits = tiles.logits(hidden[rows], weight, columns)
            logits -= normalizer[rows, None]
            if slope is None:
                grad = logits.exp_().mul_(level[rows])
            else:
                p = logits.exp()
                grad = logits.mul_(slope[rows]).add_(level[rows]).mul_(p)
            inside, at = _places(ids[rows], columns)
            grad.scatter_add_(1, at, torch.where(inside, given[rows], 0.0)[:, None])
            grad = grad.to(hidden.dtype)
            if to_hidden is not None:
                _add_product(to_hidden[rows], grad, weight[columns])
            if to_weight is not None:
                _add_product(to_weight[columns], grad.t(), hidden[rows])
        return None if to_hidden is None else to_hidden.to(hidden.dtype), to_weight, None, None, None, None


def _places(ids: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Whether each id is among the columns [n], and its place there [n, 1], any place where it is not."""
    at = ids - columns.start
    width = columns.stop - columns.start
    return (at >= 0) & (at < width), at.clamp(0, width - 1)[:, None]


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds a @ b to `total`, in place."""
    if total.dtype == a.dtype == b.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
