"""A batch of prompts on its way into the language model: what of it is still to be computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rllib_vlm.models.qwen2_5_vl.positions import rope_positions
from rllib_vlm.models.sessions import Past
from rllib_vlm.types import Prompt

_MIN_SHARED = 16  # tokens; a shorter common prefix is not worth a pass of its own

Groups = list[tuple[Tensor, Tensor]]  # images by size: their order [n], and uint8 [n, H, W, 3]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """What is to be computed of a batch of prompts, left-aligned and padded on the right.

    Legend: N = the most tokens a prompt has to have computed.
    """

    lengths: Tensor  # int64 [B]
    embeddings: Tensor  # [B, N, D], image features in place
    positions: Tensor  # int64 [3, B, N]
    shared: int  # tokens that all prompts begin with, text only; 0 where any has a past
    pasts: Sequence[Past | None]  # the tokens before

    @property
    def computed(self) -> int:
        return int(self.lengths.sum()) - self.shared * (len(self.lengths) - 1)


def prefill(
    prompts: Sequence[Prompt],
    pasts: Sequence[Past | None],
    *,
    pad: int,
    image_token: int,
    unit: int,
    device: torch.device,
    embed: Callable[[Tensor, Tensor, Groups], Tensor],
) -> Prefill:
    """Rows of prompts behind their pasts.

    Args:
        pasts: of some first tokens of each prompt, with whole images, short of the last token.
        pad: stands behind shorter prompts.
        image_token: stands for each token of an image.
        unit: side of an image token, pixels.
        embed: token ids [B, N], where they are images' and the images, to embeddings [B, N, D].

    Raises:
        ModelError: the image tokens of a prompt are not those of its images.
    """
    arrays = [p.token_ids for p in prompts]
    shared = shared_prefix(arrays, image_token)
    kept = np.array([0 if past is None else past.tokens for past in pasts])
    if shared > kept.max():
        pasts, kept = [None] * len(prompts), np.zeros_like(kept)
    elif kept.any():
        shared = 0
    lengths = np.array([len(ids) for ids in arrays])
    token_ids = np.full((len(arrays), lengths.max()), pad, dtype=np.int64)
    for row, ids in enumerate(arrays):
        token_ids[row, : len(ids)] = ids
    segments = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    # Positions follow from the whole prompt: an image moves what comes after it by its longer side.
    is_image = (token_ids == image_token) & (segments > 0)
    images = [(row, image) for row, p in enumerate(prompts) for image in p.images]
    grids = torch.tensor([i.shape[:2] for _, i in images], dtype=torch.int64).reshape(-1, 2) // unit
    owners = torch.tensor([row for row, _ in images], dtype=torch.int64)
    positions = rope_positions(torch.from_numpy(is_image), torch.from_numpy(segments), grids, owners)

    new = lengths - kept
    at = np.arange(new.max())
    columns = np.minimum(kept[:, None] + at, lengths.max() - 1)
    real = at < new[:, None]
    token_ids = np.where(real, np.take_along_axis(token_ids, columns, 1), pad)
    is_image = real & np.take_along_axis(is_image, columns, 1)
    index = torch.from_numpy(columns).expand(3, -1, -1)
    return Prefill(
        lengths=torch.from_numpy(new).to(device),
        embeddings=embed(
            torch.from_numpy(token_ids).to(device),
            torch.from_numpy(is_image).to(device),
            _by_size(prompts, is_image.sum(1), unit, device),
        ),
        positions=positions.gather(2, index).to(device),
        shared=shared,
        pasts=pasts,
    )


def shared_prefix(token_ids: Sequence[NDArray[np.int64]], image_token: int) -> int:
    """Tokens that all prompts begin with, up to the first image and short of the last token."""
    if len(token_ids) < 2:
        return 0
    size = min(len(ids) for ids in token_ids) - 1
    stack = np.stack([ids[:size] for ids in token_ids])
    differs = (stack != stack[0]).any(0) | (stack[0] == image_token)
    shared = int(differs.argmax()) if differs.any() else size
    return shared if shared >= _MIN_SHARED else 0


def _by_size(prompts: Sequence[Prompt], tokens: NDArray[np.int64], unit: int, device: torch.device) -> Groups:
    """The last images of each prompt, as many as have `tokens` [B] tokens together."""
    images: list[NDArray[np.uint8]] = []
    for prompt, left in zip(prompts, tokens.tolist(), strict=True):
        new = []
        for image in reversed(prompt.images):
            if left <= 0:
                break
            left -= image.shape[0] // unit * (image.shape[1] // unit)
            new.append(image)
        images += reversed(new)
    sizes: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        sizes.setdefault(image.shape, []).append(i)
    return [
        (torch.tensor(order), torch.from_numpy(np.stack([images[i] for i in order])).to(device))
        for order in sizes.values()
    ]
