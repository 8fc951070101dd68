"""Messages to token ids, in a family's chat format.

A template is a program over a whole conversation; running it, and the tokenizer, over the same
system message every turn is waste, and neither lets ids that the model sampled stand as they are.
So a format says what stands around a message, and each piece of text is tokenised once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllib_vlm.errors import ModelError
from rllib_vlm.types import IMAGE_PLACEHOLDER, Message, Prompt, Role

_MEMORY = 8192  # pieces of text whose ids are remembered

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFormat:
    """What stands around the messages of a conversation.

    Example, a system message and a question in Llama's format::

        <|begin_of_text|>                                                   opening
        <|start_header_id|>system<|end_header_id|>\\n\\n a robot <|eot_id|>   heads["system"], content, tail
        <|start_header_id|>user<|end_header_id|>\\n\\n go <|eot_id|>          heads["user"], content, tail
        <|start_header_id|>assistant<|end_header_id|>\\n\\n                  answer
    """

    start: str  # the special token that begins every message
    heads: Mapping[Role, str]  # before a message's content
    tail: str  # behind it
    answer: str  # where an answer begins
    opening: str = ""  # begins every conversation
    preamble: str = ""  # behind that, where there is no system message
    before_image: tuple[int, ...] = ()  # ids around the tokens of an image
    image: int
    after_image: tuple[int, ...] = ()

    @property
    def end(self) -> str:
        """The stop token, with which `tail` begins."""
        return self.tail.rstrip()


class ChatEncoder:
    """Writes conversations in one format.

    Args:
        special: tokens that content must not speak; their spellings in it stay spellings.
    """

    def __init__(self, tokenizer: Any, form: ChatFormat, special: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._form = form
        self.special = tuple(special)
        self.start = form.start
        self._remembered: dict[str, Ids] = {}

    def prompt(
        self,
        messages: Sequence[Message],
        image_tokens: Sequence[int],
        stop_ids: Sequence[int],
        after: Prompt | None = None,
    ) -> tuple[Ids, str]:
        """The ids of a prompt that ends where the answer begins, and its text with `<image>` in it.

        Args:
            image_tokens: image tokens of every image of the messages, in order.
            stop_ids: ids after which a sampled answer needs no end of message.
            after: a prompt to which the first message is the sampled answer. Nothing is tokenised across a sampled
                answer, so the ids are those of the whole conversation.

        Raises:
            ModelError: a message's placeholders and images differ in number, no message at all, or the first one
                is not what `after` asks for.
        """
        if not messages:
            raise ModelError("a prompt needs at least one message")
        form, writer = self._form, _Writer(self)
        if after is not None:
            if messages[0].role != "assistant" or messages[0].token_ids is None:
                raise ModelError("what follows a prompt begins with a sampled answer to it")
            writer.ids(after.token_ids, after.text)
        else:
            writer.text(form.opening)
            if messages[0].role != "system":
                writer.text(form.preamble)
        counts = iter(image_tokens)
        for at, message in enumerate(messages):
            if at or after is None:  # a prompt ends with the head of its answer
                writer.text(form.heads[message.role])
            if message.token_ids is not None and message.role == "assistant":
                writer.ids(message.token_ids, message.text)
                ended = len(message.token_ids) > 0 and int(message.token_ids[-1]) in stop_ids
                writer.text(form.tail[len(form.end) :] if ended else form.tail)
                continue
            parts = message.text.split(IMAGE_PLACEHOLDER)
            if len(parts) - 1 != len(message.images):
                raise ModelError(
                    f"a {message.role} message has {len(parts) - 1} {IMAGE_PLACEHOLDER!r}"
                    f" but {len(message.images)} images"
                )
            writer.content(parts[0])
            for part in parts[1:]:
                image = [*form.before_image, *[form.image] * next(counts), *form.after_image]
                writer.ids(np.asarray(image), IMAGE_PLACEHOLDER)
                writer.content(part)
            writer.text(form.tail)
        writer.text(form.answer)
        return writer.finish()

    def followup(self, text: str) -> Ids:
        """The ids from an ended answer to the next one, with a user's message in between."""
        if IMAGE_PLACEHOLDER in text:
            raise ModelError(
                f"a follow-up message cannot hold {IMAGE_PLACEHOLDER!r}: it is about images shown before"
            )
        form, writer = self._form, _Writer(self)
        writer.text(form.tail[len(form.end) :] + form.heads["user"])
        writer.content(text)
        writer.text(form.tail + form.answer)
        return writer.finish()[0]

    def answer(self, text: str) -> Ids:
        """The ids of an answer's text, as a sampled one would be read back; no end of message."""
        return self.tokenize(text, literal=any(token in text for token in self.special))

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
        if any(token in text for token in self._chat.special):
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
            cut = self._pending.find(self._chat.start, 1)
            piece = self._pending if cut < 0 else self._pending[:cut]
            self._pieces.append(self._chat.tokenize(piece))
            self._shown.append(piece)
            self._pending = self._pending[len(piece) :]
