"""Messages to token ids, as the tokenizer's chat template writes them.

A template is a program over a whole conversation; running it, and the tokenizer, over the same
system message every turn is waste, and neither lets ids that the model sampled stand as they are.
So the template is asked once what it puts around a message, and each piece of text is tokenised
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllib_vlm.errors import ModelError
from rllib_vlm.types import IMAGE_PLACEHOLDER, Message

_START = "<|im_start|>"
_MEMORY = 8192  # pieces of text whose ids are remembered

Ids = NDArray[np.int64]


class ChatEncoder:
    """Writes conversations in the ChatML of the Qwen families.

    Raises:
        ModelError: the tokenizer has no ChatML template.
    """

    def __init__(self, tokenizer: Any, vision: tuple[int, int, int]) -> None:
        self._tokenizer = tokenizer
        self._vision_start, self._image, self._vision_end = vision
        self._remembered: dict[str, Ids] = {}
        self._special = tuple(tokenizer.all_special_tokens)
        marks = {"system": "\x01", "user": "\x02", "assistant": "\x03"}
        chat = [{"role": role, "content": mark} for role, mark in marks.items()]
        try:
            full = self._render(chat, True)
            alone = self._render(chat[1:2], False)
            self._heads: dict[str, str] = {}
            rest = full
            self._tail = ""
            for role, mark in marks.items():
                self._heads[role], rest = rest.split(mark)
                self._tail, _, rest = rest.partition(_START)
                rest = _START + rest
            self._answer = rest
            self._preamble = alone.split(self._heads["user"] + marks["user"])[0]
        except (ValueError, IndexError) as error:
            raise ModelError(f"the tokenizer's chat template is missing or not ChatML: {error}") from error
        self._end = self._tail.rstrip()

    def _render(self, chat: list[dict[str, str]], answer: bool) -> str:
        return str(self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=answer))

    def prompt(
        self, messages: Sequence[Message], image_tokens: Sequence[int], stop_ids: Sequence[int]
    ) -> tuple[Ids, str]:
        """The ids of a prompt that ends where the answer begins, and its text with `<image>` in it.

        Args:
            image_tokens: image tokens of every image of the messages, in order.
            stop_ids: ids after which a sampled answer needs no end of message.

        Raises:
            ModelError: a message's placeholders and images differ in number, or no message at all.
        """
        if not messages:
            raise ModelError("a prompt needs at least one message")
        writer = _Writer(self)
        if messages[0].role != "system":
            writer.text(self._preamble)
        counts = iter(image_tokens)
        for message in messages:
            writer.text(self._heads[message.role])
            if message.token_ids is not None and message.role == "assistant":
                writer.ids(message.token_ids, message.text)
                ended = len(message.token_ids) > 0 and int(message.token_ids[-1]) in stop_ids
                writer.text(self._tail[len(self._end) :] if ended else self._tail)
                continue
            parts = message.text.split(IMAGE_PLACEHOLDER)
            if len(parts) - 1 != len(message.images):
                raise ModelError(
                    f"a {message.role} message has {len(parts) - 1} {IMAGE_PLACEHOLDER!r}"
                    f" but {len(message.images)} images"
                )
            writer.content(parts[0])
            for part in parts[1:]:
                image = [self._vision_start, *[self._image] * next(counts), self._vision_end]
                writer.ids(np.asarray(image), IMAGE_PLACEHOLDER)
                writer.content(part)
            writer.text(self._tail)
        writer.text(self._answer)
        return writer.finish()

    def followup(self, text: str) -> Ids:
        """The ids from an ended answer to the next one, with a user's message in between."""
        if IMAGE_PLACEHOLDER in text:
            raise ModelError(
                f"a follow-up message cannot hold {IMAGE_PLACEHOLDER!r}: it is about images shown before"
            )
        writer = _Writer(self)
        writer.text(self._tail[len(self._end) :] + self._heads["user"])
        writer.content(text)
        writer.text(self._tail + self._answer)
        return writer.finish()[0]

    def answer(self, text: str) -> Ids:
        """The ids of an answer's text, as a sampled one would be read back; no end of message."""
        return self.tokenize(text, literal=any(token in text for token in self._special))

    def tokenize(self, text: str, *, literal: bool = False) -> Ids:
        """Ids of a piece of text; `literal` reads special tokens in it as plain characters."""
        key = "\x00" + text if literal else text
        ids = self._remembered.get(key)
        if ids is None:
            encoded = self._tokenizer(text, add_special_tokens=False, split_special_tokens=literal)
            ids = np.asarray(encoded["input_ids"], dtype=np.int64)
            ids.flags.writeable = False
            if len(self._remembered) >= _MEMORY:
                self._remembered.clear()
            self._remembered[key] = ids
        return ids


class _Writer:
    """Collects a prompt. Adjacent text is tokenised together, as the template's output would be."""

    def __init__(self, chat: ChatEncoder) -> None:
        self._chat = chat
        self._pending = ""
        self._pieces: list[Ids] = []
        self._shown: list[str] = []

    def text(self, text: str) -> None:
        self._pending += text

    def content(self, text: str) -> None:
        """Text from outside: a special token spelled in it stays a spelling."""
        if any(token in text for token in self._chat._special):
            self._flush()
            self._pieces.append(self._chat.tokenize(text, literal=True))
            self._shown.append(text)
        else:
            self._pending += text

    def ids(self, ids: Ids, shown: str) -> None:
        self._flush()
        self._pieces.append(ids)
        self._shown.append(shown)

    def finish(self) -> tuple[Ids, str]:
        self._flush()
        return np.concatenate(self._pieces).astype(np.int64, copy=False), "".join(self._shown)

    def _flush(self) -> None:
        # A message's end is where tokenisation can be cut without changing it: special tokens
        # never merge with anything. Cutting there makes system messages one remembered piece.
        while self._pending:
            cut = self._pending.find(_START, 1)
            piece = self._pending if cut < 0 else self._pending[:cut]
            self._pieces.append(self._chat.tokenize(piece))
            self._shown.append(piece)
            self._pending = self._pending[len(piece) :]
