"""Random weights for small models trained from nothing.

transformers draws every matrix with one standard deviation (0.02), which suits widths of thousands.
At a width of 128 queries and keys then hardly differ, attention is a plain average for the first
thousands of steps, and layers drown the embeddings they are added to; copying a word from the
prompt, on which everything else rests, is learnt many times later (docs/results.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

EMBEDDING_STD = 0.1  # tied to the output: logits start near a spread of 1 at widths of about 100
FILTER_NORM = 0.3  # a bright patch of 14 x 14 pixels then gives outputs of about 4
MATCHING_GAIN = 1.0  # of queries over keys; a word then weighs itself about twenty times a word unlike it
_INTO_RESIDUAL = ("o_proj.weight", "down_proj.weight", "attn.proj.weight", "mlp.fc2.weight")


def initialize(model: nn.Module, *, num_layers: int) -> None:
    """Draws all matrices of `model` anew, in place, from torch's present generator.

    Every output of a matrix has the spread of its inputs (standard deviation 1 / sqrt(fan in), LeCun
    et al. 1998, Efficient BackProp); matrices that add to the residual stream are smaller by
    sqrt(2 `num_layers`), so that the stream does not grow with depth (Radford et al. 2019, GPT-2).
    Vectors (norms, biases) stay as they are, a vision tower's first layer begins with `cosine_filters`, and
    the language model's attention with `match_content`.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            std = EMBEDDING_STD
        elif name.endswith("patch_embed.proj.weight"):
            with torch.no_grad():
                parameter.copy_(cosine_filters(parameter.shape))
            continue
        else:
            std = parameter[0].numel() ** -0.5
            if name.endswith(_INTO_RESIDUAL):
                std /= (2 * num_layers) ** 0.5
        with torch.no_grad():
            parameter.normal_(0.0, std)
    for module in model.modules():
        if hasattr(module, "q_proj") and hasattr(module, "k_proj"):
            attention: Any = module
            match_content(attention.q_proj.weight, attention.k_proj.weight, head_size=attention.head_dim)


@torch.no_grad()
def match_content(queries: Tensor, keys: Tensor, *, head_size: int) -> None:
    """Makes every head look, from the start, for what is like the token that asks.

    The product of queries and keys of trained transformers is close to a multiple of the identity, and
    small models that start so learn several times faster (Trockman & Kolter 2023, arXiv 2305.09828). Here
    a word that asks finds the same word in the prompt, and the image tokens that show what it names. Only
    the slower half of the rotary frequencies takes part: the others turn within a few tokens.

    Args:
        queries: weight [H * head_size, D], changed in place.
        keys: weight [G * head_size, D] of the G key heads, each shared by H / G query heads; changed in place.
        head_size: rows of a head; rows i and i + head_size / 2 turn together, the slower the larger i.
    """
    half = head_size // 2
    slow = torch.arange(half // 2, half)
    slow = torch.cat([slow, slow + half])
    asked, given = queries.view(-1, head_size, queries.shape[1]), keys.view(-1, head_size, keys.shape[1])
    shared = len(asked) // len(given)
    for g, key in enumerate(given):
        directions = torch.linalg.qr(torch.randn(max(queries.shape[1], len(slow)), len(slow)))[0].T
        key[slow] = directions[:, : queries.shape[1]]
        asked[g * shared : (g + 1) * shared, slow] = MATCHING_GAIN * key[slow]


def cosine_filters(shape: Sequence[int]) -> Tensor:
    """A first layer that sees colours and coarse shapes from the start, in place of noise.

    The lowest frequencies of the two-dimensional cosine transform of a patch (as in JPEG, Wallace 1992),
    each for brightness, red against green, and blue against yellow. Filters beyond those are 0.

    Args:
        shape: (filters, 3 channels, frames, height, width) of the layer's weight.

    Returns:
        The weight. Filters have a norm of `FILTER_NORM`, summed over frames that show the same picture.
    """
    filters, channels, frames, height, width = shape
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [-1.0, -1.0, 2.0]])[:, :channels]
    colours = colours / colours.norm(dim=1, keepdim=True)
    rows, columns = _cosines(height), _cosines(width)
    order = sorted(
        ((u, v) for u in range(height) for v in range(width)), key=lambda f: (f[0] ** 2 + f[1] ** 2, f)
    )
    weight = torch.zeros(filters, channels, frames, height, width)
    for i in range(min(filters, len(order) * len(colours))):
        (u, v), colour = order[i // len(colours)], colours[i % len(colours)]
        pattern = torch.outer(rows[u], columns[v])
        weight[i] = FILTER_NORM * colour[:, None, None, None] * pattern / frames
    return weight


def _cosines(size: int) -> Tensor:
    """[size, size] the orthonormal basis of the cosine transform, one function a row."""
    k = torch.arange(size, dtype=torch.float32)
    basis = torch.cos(math.pi / size * (k + 0.5) * k[:, None]) * (2.0 / size) ** 0.5
    basis[0] /= 2.0**0.5
    return basis
