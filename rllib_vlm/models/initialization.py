"""Random weights for small models trained from nothing.

transformers draws every matrix with one standard deviation (0.02), which suits widths of thousands.
At a width of 128 queries and keys then hardly differ, attention is a plain average for the first
thousands of steps, and layers drown the embeddings they are added to; copying a word from the
prompt, on which everything else rests, is learnt many times later (docs/results.md).
"""

from __future__ import annotations

import torch
from torch import nn

EMBEDDING_STD = 0.1  # tied to the output: logits start near a spread of 1 at widths of about 100
_INTO_RESIDUAL = ("o_proj.weight", "down_proj.weight", "attn.proj.weight")


def initialize(model: nn.Module, *, num_layers: int) -> None:
    """Draws all matrices of `model` anew, in place, from torch's present generator.

    Every output of a matrix has the spread of its inputs (standard deviation 1 / sqrt(fan in), LeCun
    et al. 1998, Efficient BackProp); matrices that add to the residual stream are smaller by
    sqrt(2 `num_layers`), so that the stream does not grow with depth (Radford et al. 2019, GPT-2).
    Vectors (norms, biases) stay as they are.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            std = EMBEDDING_STD
        else:
            std = parameter[0].numel() ** -0.5
            if name.endswith(_INTO_RESIDUAL):
                std /= (2 * num_layers) ** 0.5
        with torch.no_grad():
            parameter.normal_(0.0, std)
