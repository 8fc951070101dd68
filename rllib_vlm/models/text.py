"""What families share: how one is built, and the half that is about text, its tokens and the output layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rllib_vlm.models.adapters import add_lora, check_lora, freeze
from rllib_vlm.models.chat import ChatEncoder
from rllib_vlm.models.checkpoint import PACKAGED, resolve_checkpoint
from rllib_vlm.models.tokenizer import load_corpus
from rllib_vlm.types import Mention


class TextSide:
    """What `VLMFamily` asks of text, for models with an output layer `lm_head`.

    Args:
        model: transformers' model.
        chat: how conversations are written.
        banned: ids that are never sampled.

    Attributes:
        settings: the class that reads a `rl_module.model_config` section.
        load: a model and what goes with it, from such settings.
    """

    settings: ClassVar[Any]
    load: ClassVar[Any]

    def __init__(self, model: Any, tokenizer: Any, chat: ChatEncoder, *, banned: tuple[int, ...]) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._chat = chat
        text = model.config.text_config
        self.hidden_size = int(text.hidden_size)
        self.vocab_size = int(text.vocab_size)
        stop, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        self.stop_token_ids = (int(stop),)
        self.pad_token_id = int(stop if pad is None else pad)
        self.banned_token_ids = banned
        other, named = (chat.tokenize(word)[0] for word in (" not", " seen"))
        self.referring_words = (int(other), int(named))
        self._tokenized: dict[str, tuple[int, ...]] = {}
        self._bans = torch.zeros(self.vocab_size)
        self._bans[list(banned)] = -torch.inf

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> Self:
        """From `rl_module.model_config`; its keys are the fields of the family's `settings`.

        Raises:
            UnknownNameError: a key or size there is not.
            ModelError: the checkpoint is missing or of another architecture, or values do not fit.
        """
        settings = cls.settings.read(config)
        family = cls(cls.load(settings), settings)  # type: ignore[call-arg]
        family.model.eval()  # no dropout anywhere; sampling and learning see the same function
        if settings.lora is not None:
            add_lora(family.model, settings.lora)
        if settings.freeze:
            freeze(family.model, settings.freeze)
        return family

    @classmethod
    def check_config(cls, config: Mapping[str, Any]) -> None:
        """Refuses keys, sizes and values that `build` would refuse, without loading anything.

        Raises:
            UnknownNameError: a key or size there is not.
            ModelError: a value out of its range, both or neither of `checkpoint` and `size`, or a corpus or packaged
                model there is not. Directories are left to `build`: they may lie on the workers' machines alone.
        """
        settings = cls.settings.read(config)
        check_lora(settings.lora)
        if settings.checkpoint is None and settings.tokenizer_texts is None:
            load_corpus(settings.corpus)
        if settings.checkpoint is not None and settings.checkpoint.startswith(PACKAGED):
            resolve_checkpoint(settings.checkpoint)

    def encode_answer(self, text: str) -> NDArray[np.int64]:
        """[T] the ids of an answer as the model would sample it, its stop token included."""
        return np.append(self._chat.answer(text), self.stop_token_ids[0])

    def encode_followup(self, text: str) -> NDArray[np.int64]:
        """[T] what stands between an answer, its stop token included, and the answer to a user's next message.

        Raises:
            ModelError: the text holds an image placeholder.
        """
        return self._chat.followup(text)

    def decode(self, token_ids: NDArray[np.int64]) -> str:
        """Text of a completion, without its stop token."""
        ids = list(map(int, token_ids))
        while ids and ids[-1] in self.stop_token_ids:
            ids.pop()
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def char_ends(self, token_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """[T] characters of the text of a completion up to and with each of its tokens; a stop token has none.

        Bytes that are no whole character yet are counted as `decode` shows them.
        """
        return np.array([len(self.decode(token_ids[: t + 1])) for t in range(len(token_ids))], np.int64)

    def word_logits(self, features: Tensor, words: Tensor) -> Tensor:
        """[..., K] how well each of `words` [K] describes features [..., D] of image tokens, float32.

        The features are compared with the words' embeddings, so what an image token shows becomes
        readable to attention the way a word is.
        """
        normed = torch.nn.functional.rms_norm(features.float(), features.shape[-1:])
        return torch.nn.functional.linear(normed, self.model.lm_head.weight[words].float())

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] of hidden states [..., D], float32, banned ids at -inf."""
        if self._bans.device != hidden.device:
            self._bans = self._bans.to(hidden.device)
        return self.model.lm_head(hidden).float() + self._bans

    @property
    def output_weight(self) -> Tensor | None:
        """[V, D] where `logits` is hidden @ weight.T but for the bans; None where it is more than that."""
        head = self.model.lm_head
        return head.weight if type(head) is nn.Linear and head.bias is None else None

    def _mark_mentions(
        self, shown: NDArray[np.int64], token_ids: NDArray[np.int64], mentions: Sequence[Mention]
    ) -> None:
        """Writes into the last row of `shown` [6, P] at the last token of each name whether it is meant."""
        ends = len(token_ids)
        for mention in reversed(mentions):  # from the end: earlier messages may tell of the same things
            name = np.array(self._words(f" {mention.words}"))
            begins = _last_of(name, token_ids[:ends])
            if begins is not None:
                ends = begins
                shown[-1, begins + len(name) - 1] = mention.named

    def _words(self, text: str) -> tuple[int, ...]:
        """The tokens of a name or a place; there are few, and they come often."""
        if text not in self._tokenized:
            self._tokenized[text] = tuple(map(int, self._chat.tokenize(text)))
        return self._tokenized[text]


def _last_of(words: NDArray[np.int64], ids: NDArray[np.int64]) -> int | None:
    """Where `words` begin for the last time in `ids`; None where they do not occur."""
    if len(words) > len(ids):
        return None
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(words))
    found = np.flatnonzero((windows == words).all(1))
    return int(found[-1]) if len(found) else None
