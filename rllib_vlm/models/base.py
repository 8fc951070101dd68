"""What a model family is: one class of vision-language models behind one interface.

A family owns its tokenizer, its image processing and its Hugging Face model, and is the only
place that knows their details. Batches reach it as `TokenRows`.

Legend: B rows, L padded length, D hidden size, V vocabulary, I images a row, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import GenerationConfig

from rllib_vlm.models.precision import Precision
from rllib_vlm.models.sessions import Session, SessionCache
from rllib_vlm.types import Detection, Mention, Message, Prompt, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRows:
    """A batch of token rows. One row may hold several packed segments, which never see each other.

    Example of two segments and padding in one row of L = 8::

        token_ids   = [ 1, 40, 52,  2,  1, 41,  2,  0]
        segment_ids = [ 1,  1,  1,  1,  2,  2,  2,  0]      0 is padding
    """

    token_ids: Tensor  # int64 [B, L]
    segment_ids: Tensor  # int64 [B, L]
    images: Tensor  # uint8 [B, I, H, W, 3], in the order of their placeholders; I may be 0
    image_sizes: Tensor  # int64 [B, I, 2] (height, width) of each image's valid corner; 0, 0 is no image
    # bool [B, L], where last hidden states are wanted: elsewhere they may be anything. None is everywhere.
    read: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Depths:
    """Features of a batch of rows on their way through a model, [B, L, D] each; padding positions hold anything."""

    embedded: Tensor  # what the language model reads: at image tokens the vision tower's features
    middle: Tensor  # after half of its layers, without any norm
    last: Tensor  # last hidden states


class VLMFamily(Protocol):
    """One family. `model` is the trainable torch module; everything else is derived from it."""

    model: nn.Module
    hidden_size: int
    vocab_size: int
    pad_token_id: int
    stop_token_ids: tuple[int, ...]
    referring_words: tuple[
        int, int
    ]  # tokens that say of an image token: not what the instruction names; it is
    # Never sampled: image placeholders and other special ids, as far as the output layer has them at all; sorted.
    banned_token_ids: tuple[int, ...]
    packs: ClassVar[bool]  # several segments in a row cost no more than their tokens; else rows hold one each
    labels_images: ClassVar[bool]  # parts of an image are tokens, so that labels can say what they show
    # Engines, by their backends' names, that know this kind of model. A family that has any takes `weights: false` in
    # its config: env runners then need no weights of a checkpoint, only what writes and reads prompts.
    served_by: ClassVar[tuple[str, ...]]
    image_token_id: int  # of the placeholder that stands for an image, or for each of its parts

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> VLMFamily:
        """From a `rl_module.model_config` section: `checkpoint` (a directory or hub name) or a tiny `size`.

        Raises:
            ModelError: the checkpoint directory is missing or not of this family.
        """

    @classmethod
    def check_config(cls, config: Mapping[str, Any]) -> None:
        """Refuses what `build` would refuse of such a section, as far as it shows without building anything.

        Raises:
            UnknownNameError: a key or a name there is not.
            ModelError: a value that does not fit.
        """

    def encode(self, messages: Sequence[Message], after: Prompt | None = None) -> Prompt:
        """Messages to a prompt that ends where the assistant's answer begins.

        Args:
            messages: a conversation so far.
            after: the prompt that the first of them is the sampled answer to; what comes out is what the whole
                conversation would be encoded to, for the price of what is new.
        """

    def label(
        self,
        prompt: Prompt,
        detections: Sequence[Detection],
        *,
        images: int,
        mentions: Sequence[Mention] = (),
    ) -> Prompt:
        """The prompt with `shown` filled in.

        The detections are of its last `images` images; the mentions stand in the text of its last message, in
        this order. Detections get no label in a family without `labels_images`.
        """

    def crops(
        self,
        prompt: Prompt,
        detections: Sequence[Detection],
        *,
        images: int,
        count: int,
        rng: np.random.Generator,
    ) -> list[Prompt]:
        """`count` labelled prompts per detection, each of one small cut around it out of the last `images` images.

        None in a family without `labels_images`.
        """

    def encode_answer(self, text: str) -> NDArray[np.int64]:
        """[T] the ids of an answer as the model would sample it, its stop token included."""

    def encode_followup(self, text: str) -> NDArray[np.int64]:
        """[T] what stands between an answer, its stop token included, and the answer to a user's next message."""

    def decode(self, token_ids: NDArray[np.int64]) -> str:
        """Text of a completion, without its stop token."""

    def char_ends(self, token_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """[T] characters of the text of a completion up to and with each of its tokens."""

    def hidden(self, rows: TokenRows) -> Tensor:
        """[B, L, D] last hidden states; padding positions hold anything."""

    def embedded(self, rows: TokenRows) -> Tensor:
        """[B, L, D] what the language model reads: at image tokens the vision tower's features."""

    def depths(self, rows: TokenRows) -> Depths:
        """`embedded` and `hidden` at once, and what lies between."""

    def word_logits(self, features: Tensor, words: Tensor) -> Tensor:
        """[..., K] how well each of `words` [K], token ids, describes features [..., D] of image tokens, float32."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] of hidden states [..., D], float32, banned ids at -inf."""

    @property
    def output_weight(self) -> Tensor | None:
        """[V, D] where `logits` is hidden @ weight.T but for the bans; None where it is more or sharded."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
        seeds: Sequence[int | None] | None = None,
        *,
        cache: SessionCache | None = None,
        sessions: Sequence[Session | None] | None = None,
        precision: Precision = "float32",
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Samples one completion per prompt: (token ids [T], log-probs [T] nats), same order.

        Each prompt draws from its own of `seeds`, and so the same whatever is answered beside it. Without them
        `sampling.seed` makes one for each place; without that torch's own stream is used.

        What is computed of prompts that go on with a conversation may be kept in `cache` for its next turn; a family
        that keeps nothing leaves it alone.

        Pictures and prompts are read with matrix products of `precision`, by families that know how; what is written
        token by token gains nothing by another, and has that of the weights.
        """

    def save_pretrained(self, directory: Path) -> None:
        """Writes a directory that plain transformers (and `build`) opens."""

    def save_description(self, directory: Path) -> None:
        """Writes everything of `save_pretrained` but the weights: configuration, tokenizer, image processor."""

    @classmethod
    def generation_config(cls, directory: Path) -> GenerationConfig:
        """What tells transformers to answer as `generate` does, given a directory `save_pretrained` wrote."""
