"""What travels between env runners, the driver and engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from rllib_vlm.types import Image, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyWeights:
    """The weights of a policy and all else that its model's directory holds."""

    version: int
    files: Mapping[str, bytes]  # of the directory, by name: configuration, tokenizer, image processor
    tensors: ray.ObjectRef  # {name: array or tensor}, as in the state of transformers' model; each once
    ties: Mapping[str, str]  # names that are not in `tensors`, and those of the tensors they share

    def fetched(self) -> Mapping[str, Any]:
        """What `tensors` stands for.

        Engines call this in a thread of their own. `ray.get` would do no harm there, but asks only whether the actor
        has an event loop, and warns that it blocks it.
        """
        found: Mapping[str, Any] = self.tensors.future().result()
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A prompt as an engine reads it, and how to answer it."""

    token_ids: NDArray[np.int64]  # [P'], one placeholder per image, however many tokens the image will be
    images: tuple[Image, ...]
    sampling: SamplingParams
    seed: int
    stop_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an engine sampled."""

    token_ids: NDArray[np.int64]  # [T]
    logprobs: NDArray[np.float32]  # [T] nats, of the distribution that sampled
    version: int  # of the weights that sampled all of it
    num_prompt_tokens: int  # image tokens included
    num_cached_tokens: int  # of those, whose keys and values were there


def unexpanded(token_ids: NDArray[np.int64], image_token_id: int) -> NDArray[np.int64]:
    """[P'] the ids of a prompt with one placeholder per image, where a prompt has one per image token.

    An engine expands placeholders itself, and would expand those that are expanded already once more. Two images
    never stand side by side: each has its marks around it.
    """
    image = token_ids == image_token_id
    again = image & np.roll(image, 1)
    again[:1] = False
    return token_ids[~again]
