"""What pictures are to the language model: the states its cross-attention layers read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor

from rllib_vlm.models.mllama.images import ImageFormat, cut

_MASK_ELEMENTS = (
    1 << 27
)  # of the tower's own attention masks at once, a picture's squared number of patches each
_LANES = 8  # the tower pads the patches of a tile to a multiple of this


def image_states(
    model: Any, canvases: Sequence[Tensor], form: ImageFormat, *, checkpoint: bool = False
) -> tuple[Tensor, Tensor]:
    """States [N, tiles * patches, D] of pictures, and how many of each picture's are its own, [N].

    Padding tiles go through the tower as well: in transformers' tower a picture's patches attend to them too, and the
    released weights are used to it.

    Args:
        model: transformers' `MllamaModel`.
        canvases: uint8 [H, W, 3] each, at its final size.
        checkpoint: compute the tower again in the backward pass instead of keeping its activations.

    Raises:
        ModelError: a picture is not at its final size.
    """
    patches = model.vision_model.num_patches
    padded = form.max_tiles * (-(-patches // _LANES) * _LANES)
    at_once = max(1, _MASK_ELEMENTS // padded**2)
    tower = partial(_tower, model)
    states, counts = [], []
    for start in range(0, len(canvases), at_once):
        tiles = cut(canvases[start : start + at_once], form)
        inputs = (tiles.pixels, tiles.ratio_ids, tiles.counts)
        if checkpoint and torch.is_grad_enabled():
            states.append(torch.utils.checkpoint.checkpoint(tower, *inputs, use_reentrant=False))
        else:
            states.append(tower(*inputs))
        counts.append(tiles.counts * patches)
    return torch.cat(states), torch.cat(counts)


def _tower(model: Any, pixels: Tensor, ratio_ids: Tensor, counts: Tensor) -> Tensor:
    """[N, tiles * patches, D]."""
    real = torch.arange(pixels.shape[1], device=counts.device) < counts[:, None]
    features = model.vision_model(
        pixel_values=pixels[:, None],
        aspect_ratio_ids=ratio_ids[:, None],
        aspect_ratio_mask=real[:, None].long(),
    ).last_hidden_state
    states: Tensor = model.multi_modal_projector(features[:, 0].flatten(1, 2))
    return states
