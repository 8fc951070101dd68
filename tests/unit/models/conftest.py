"""One tiny model for all tests of this folder, with weights hot enough that every mistake shows."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import pytest
import torch

from rllib_vlm.models.qwen2_5_vl import Qwen25VL
from rllib_vlm.models.text import TextSide
from rllib_vlm.types import Message, Prompt

Family = TypeVar("Family", bound=TextSide)
SIZES = ((56, 84), (112, 56), (28, 28), (140, 196))


def make_hot(family: Family) -> Family:
    """Random weights so large that attention, positions and images decide the answer."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in family.model.named_parameters():
            if parameter.ndim > 1:
                scale = 1.2 / parameter[0].numel() ** 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            elif name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return family


@pytest.fixture(scope="session")
def family() -> Qwen25VL:
    return make_hot(
        Qwen25VL.build({"size": "tiny", "tokenizer_words": ("move_ahead", "rotate_left", "done")})
    )


def make_prompt(family: Qwen25VL, images: int, words: int = 5, seed: int = 0, system: str = "") -> Prompt:
    """A prompt with `images` pictures of different sizes."""
    rng = np.random.default_rng(seed + 100 * images)
    pictures = tuple(
        rng.integers(0, 256, (*SIZES[(seed + i) % len(SIZES)], 3), dtype=np.uint8) for i in range(images)
    )
    text = "<image> and ".join([""] * (images + 1)) + "turn to the red mug " * words
    messages = [Message(role="system", text=system)] if system else []
    return family.encode([*messages, Message(role="user", text=text, images=pictures)])
