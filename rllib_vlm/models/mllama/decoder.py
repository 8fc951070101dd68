"""The language model's layers, called one by one, with what each token sees of the images.

A token sees the images from the latest run of adjacent image tokens up to itself: of `<image> a <image><image> b`,
a sees the first image and b the other two. Source: `get_cross_attention_token_mask` of transformers' Mllama processor.

A token before the first image sees none. transformers lets such a token attend to all images alike, those further on
and other rows' padding included; whatever was sampled before a later image arrived would then have other log-probs once
it is there. The original model cuts these tokens off (it multiplies the output of cross-attention by
`full_text_row_masked_out_mask`: CrossAttention of meta-llama/llama-models, likewise vLLM's mllama), and so does this
module, by giving them one key that shows nothing: keys and values have no bias, so a state of zeros adds zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """What the tokens of S segments see of their images, among K states each; the first state is zeros."""

    states: Tensor | None  # [S, K, D]; None where keys and values are in the cache
    mask: Tensor  # [S, 1, T, K], 0 where a token sees a state and -inf elsewhere
    seen: Tensor  # [S, 1, T, 1], 1 where a token sees any image and 0 elsewhere

    @classmethod
    def of(cls, is_image: Tensor, features: Tensor, counts: Tensor) -> Views:
        """From where the images of a batch stand.

        Args:
            is_image: bool [S, T]; the n-th True of the batch is the token of the n-th image.
            features: [N, C, D] states of the images.
            counts: int64 [N], how many of the C are an image's own.
        """
        device, (images, most, width) = features.device, features.shape
        owner = is_image.nonzero()[:, 0]  # [N] segment of each image
        number = is_image.cumsum(1)  # [S, T] images up to and with a token
        run_starts = is_image.clone()
        run_starts[:, 1:] &= ~is_image[:, :-1]
        earliest = (
            torch.where(run_starts, number, 0).cummax(1).values
        )  # the first image a token sees; 0 is none
        own = number[is_image]  # [N] number of each image in its segment, from 1
        before = counts.cumsum(0) - counts  # states of all earlier images of the batch
        before = before - before[torch.searchsorted(owner, owner)]  # ... of the segment
        total = torch.zeros(len(is_image), dtype=torch.int64, device=device).index_add_(0, owner, counts)
        keys = 1 + int(total.max())
        column = torch.arange(most, device=device)
        real = column < counts[:, None]  # [N, C]
        slots = (owner[:, None] * keys + 1 + before[:, None] + column)[real]
        states = features.new_zeros(len(is_image) * keys, width)
        states = states.index_copy(0, slots, features[real]).view(len(is_image), keys, width)
        shows = torch.full((len(is_image) * keys,), -1, device=device)  # number of the image of each state
        shows[::keys] = 0
        shows[slots] = own[:, None].expand(images, most)[real]
        shows = shows.view(len(is_image), 1, keys)
        visible = (earliest[..., None] <= shows) & (shows <= number[..., None])
        mask = torch.zeros(visible.shape, dtype=features.dtype, device=device)
        return cls(
            states=states,
            mask=mask.masked_fill_(~visible, -torch.inf)[:, None],
            seen=(earliest > 0)[:, None, :, None].to(features.dtype),
        )

    def after(self, lengths: Tensor) -> Views:
        """What tokens that follow the first `lengths` [S] of each segment see, its states being cached."""
        rows, last = torch.arange(len(lengths), device=lengths.device), lengths - 1
        return Views(
            states=None, mask=self.mask[rows, :, last][:, :, None], seen=self.seen[rows, :, last][:, :, None]
        )

    def select(self, rows: Tensor) -> Views:
        """Those of some segments, the states being cached."""
        return Views(states=None, mask=self.mask[rows], seen=self.seen[rows])


def run_layers(
    language: Any,
    x: Tensor,
    positions: Tensor,
    views: Views | None,
    *,
    mask: Tensor | None = None,
    cache: Any = None,
    checkpoint: bool = False,
) -> tuple[Tensor, Tensor]:
    """Last hidden states of embeddings `x` [S, T, D], the final norm included, and those after half of the layers.

    Args:
        language: transformers' `MllamaTextModel`.
        positions: int64 [S or 1, T].
        views: None where no segment has an image; cross-attention layers are then left out, as they change nothing.
        mask: additive [S, 1, T, ...] of self-attention; None is causal.
        cache: transformers' cache of keys and values, to be read and extended.
        checkpoint: compute layers again in the backward pass instead of keeping their activations.
    """
    turns = language.rotary_emb(x, position_ids=positions)
    middle = x
    for i, layer in enumerate(language.layers):
        if i == len(language.layers) // 2:
            middle = x
        if i in language.cross_attention_layers and views is None:
            continue
        if checkpoint and torch.is_grad_enabled():
            x = torch.utils.checkpoint.checkpoint(
                _layer, layer, x, turns, views, mask, cache, use_reentrant=False
            )
        else:
            x = _layer(layer, x, turns, views, mask, cache)
    last: Tensor = language.norm(x)
    return last, middle


def _layer(
    layer: Any,
    x: Tensor,
    turns: tuple[Tensor, Tensor],
    views: Views | None,
    mask: Tensor | None,
    cache: Any,
) -> Tensor:
    out: Tensor = layer(
        x,
        cross_attention_states=None if views is None else views.states,
        cross_attention_mask=None if views is None else views.mask,
        attention_mask=mask,
        full_text_row_masked_out_mask=None if views is None else views.seen,
        position_embeddings=turns,
        cache=cache,
        use_cache=cache is not None,
    )
    return out
