"""Keys and values of a batch's tokens so far, and attention to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rllib_vlm.models import cached_attention
from rllib_vlm.models.qwen2_5_vl.decoder import attend
from rllib_vlm.models.sessions import Past

_STEP = 16  # tokens; buffers are multiples of it

_Shape = tuple[int, int, int]  # layers, 2 G, d


class Cache(Protocol):
    """Grows by a stretch of tokens at a time: `expect`, `attend` in each layer, `done`.

    What stands there from before is a row's past, [layers, 2 G, S, d] with the keys first.
    """

    def expect(self, counts: Tensor, most: int) -> None:
        """Says how many tokens come now.

        Args:
            counts: int64 [B], of each row; or [1], of one row, whose tokens then are those of all.
            most: the greatest of `counts`.
        """

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, H, L, d] of new tokens, which see their rows up to their own.

        Args:
            q: [B, H, L, d], of all tokens that come; or with L = 1 of the last one of each row.
            k: [B, G, N, d].
            v: [B, G, N, d].
        """

    def done(self) -> None:
        """All layers have seen what came."""

    def select(self, rows: Sequence[int]) -> None:
        """Keeps these rows of the batch."""

    def memory(self, row: int) -> Past:
        """A row's tokens."""


def cache_of(
    language: Any, pasts: Sequence[Past | None], room: Sequence[int], like: Tensor, *, lasting: bool = False
) -> Cache:
    """For rows that go on from their pasts.

    Args:
        language: transformers' Qwen2.5-VL language model.
        room: tokens that are still to come, of each row.
        like: of their kind keys and values are.
        lasting: `memory` of a row is for longer than the batch.
    """
    heads, width = language.config.num_key_value_heads, language.layers[0].self_attn.head_dim
    shape = (len(language.layers), 2 * heads, width)
    if cached_attention.available(width, like):
        return InPlace(shape, pasts, room, like, lasting=lasting)
    return InSlots(shape, pasts, room, like)


class InPlace:
    """Each row in a buffer of its own, which is its past's if there is room in it. See `Cache` and `cache_of`."""

    def __init__(
        self,
        shape: _Shape,
        pasts: Sequence[Past | None],
        room: Sequence[int],
        like: Tensor,
        *,
        lasting: bool,
    ) -> None:
        layers, heads, width = shape
        used = [0 if past is None else past.tokens for past in pasts]
        needed = [own + more for own, more in zip(used, room, strict=True)]
        if lasting:
            pairs = [
                past.pairs
                if past is not None and past.pairs.shape[2] >= size
                else like.new_empty(layers, heads, _rounded(size), width)
                for past, size in zip(pasts, needed, strict=True)
            ]
        else:
            pairs = list(like.new_empty(len(needed), layers, heads, max(needed), width))
        for own, past in zip(pairs, pasts, strict=True):
            if past is not None and own is not past.pairs:
                own[:, :, : past.tokens] = past.pairs[:, :, : past.tokens]
        self._buffers = cached_attention.Buffers(pairs, used)
        self._counts = torch.zeros_like(self._buffers.used)

    def expect(self, counts: Tensor, most: int) -> None:
        self._counts = counts

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self._buffers.attend(layer, q, k, v, self._counts)

    def done(self) -> None:
        if len(self._counts) < len(self._buffers.used):  # one row's, for all
            first, new = self._buffers.pairs[0], int(self._counts)
            for own in self._buffers.pairs[1:]:
                own[:, :, :new] = first[:, :, :new]
        self._buffers.used += self._counts

    def select(self, rows: Sequence[int]) -> None:
        self._buffers.select(list(rows))

    def memory(self, row: int) -> Past:
        pairs, tokens = self._buffers.pairs[row], int(self._buffers.used[row])
        # There was room for the longest answer; what is kept is not to count that.
        if pairs.shape[2] > tokens * 3 // 2 + _STEP:
            pairs = pairs.new_empty(*pairs.shape[:2], _rounded(tokens), pairs.shape[3])
            pairs[:, :, :tokens] = self._buffers.pairs[row][:, :, :tokens]
        return Past(pairs, tokens)


class InSlots:
    """All rows in one tensor, with masks, as torch's attention wants it. See `Cache` and `cache_of`.

    Pasts end in the same slot, and what comes begins in the same slot, whatever their lengths.
    """

    def __init__(
        self, shape: _Shape, pasts: Sequence[Past | None], room: Sequence[int], like: Tensor
    ) -> None:
        layers, heads, width = shape
        kept = [0 if past is None else past.tokens for past in pasts]
        self._used = max(kept)
        self._new = 0
        size = self._used + max(room)
        self._pairs = like.new_empty(layers, len(pasts), heads, size, width)
        self._seen = like.new_zeros(len(pasts), size)  # -inf in slots in which a row has nothing
        self._mask: Tensor | None = None
        for row, past in enumerate(pasts):
            begin = self._used - kept[row]
            self._pairs[:, row, :, :begin] = 0.0  # 0 times what is there by chance may be NaN
            self._seen[row, :begin] = -torch.inf
            if past is not None:
                self._pairs[:, row, :, begin : self._used] = past.pairs[:, :, : past.tokens]

    def expect(self, counts: Tensor, most: int) -> None:
        slots = torch.arange(most, device=counts.device)
        self._seen[:, self._used : self._used + most].masked_fill_(slots >= counts[:, None], -torch.inf)
        self._new, self._mask = most, None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        end, own, groups = self._used + self._new, self._pairs[layer], k.shape[1]
        own[:, :groups, self._used : end] = k
        own[:, groups:, self._used : end] = v
        b, heads, tokens, d = q.shape
        k, v = own[:b, :groups, :end], own[:b, groups:, :end]
        if tokens == end > 1:
            return attend(q, k, v, None)  # what a row does not see stands behind what it does
        if tokens > 1:
            return attend(q, k, v, self._causal())
        # The heads that share a key head become its queries: no copy of the cache per head.
        grouped = q.reshape(b, groups, heads // groups, d).to(k.dtype)
        mask = self._seen[:b, None, None, :end]
        return F.scaled_dot_product_attention(grouped, k, v, mask).reshape(b, heads, 1, d)

    def done(self) -> None:
        self._used += self._new

    def select(self, rows: Sequence[int]) -> None:
        at = torch.tensor(rows, dtype=torch.int64, device=self._seen.device)
        self._pairs, self._seen = self._pairs[:, at], self._seen[at]

    def memory(self, row: int) -> Past:
        pairs = self._pairs[:, row, :, : self._used][:, :, self._seen[row, : self._used] == 0]
        return Past(pairs, pairs.shape[2])

    def _causal(self) -> Tensor:
        """Additive [1 or B, 1, new, slots]."""
        if self._mask is None:
            end = self._used + self._new
            slots = torch.arange(end, device=self._seen.device)
            self._mask = self._seen.new_zeros(1, 1, self._new, end)
            self._mask.masked_fill_(slots > slots[self._used :, None], -torch.inf)
            if self._seen[:, : self._used].any():
                self._mask = self._mask + self._seen[:, None, None, :end]
        return self._mask


def _rounded(tokens: int) -> int:
    """With room for some more turns."""
    return -(-tokens * 5 // 4 // _STEP) * _STEP
