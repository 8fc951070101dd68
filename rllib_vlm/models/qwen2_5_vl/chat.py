"""ChatML as a tokenizer's template writes it: the template is asked once what it puts around a message."""

from __future__ import annotations

from typing import Any

from rllib_vlm.errors import ModelError
from rllib_vlm.models.chat import ChatEncoder, ChatFormat
from rllib_vlm.types import Role

_START = "<|im_start|>"


def chatml(tokenizer: Any, vision: tuple[int, int, int]) -> ChatEncoder:
    """For the Qwen families.

    Args:
        vision: ids of the tokens before, of and behind an image.

    Raises:
        ModelError: the tokenizer has no ChatML template.
    """
    before, image, after = vision
    marks: dict[Role, str] = {"system": "\x01", "user": "\x02", "assistant": "\x03"}
    chat = [{"role": role, "content": mark} for role, mark in marks.items()]
    heads: dict[Role, str] = {}
    tail = ""
    try:
        rest = _render(tokenizer, chat, True)
        alone = _render(tokenizer, chat[1:2], False)
        for role, mark in marks.items():
            heads[role], rest = rest.split(mark)
            tail, _, rest = rest.partition(_START)
            rest = _START + rest
        preamble = alone.split(heads["user"] + marks["user"])[0]
    except (ValueError, IndexError) as error:
        raise ModelError(f"the tokenizer's chat template is missing or not ChatML: {error}") from error
    form = ChatFormat(
        start=_START,
        heads=heads,
        tail=tail,
        answer=rest,
        preamble=preamble,
        before_image=(before,),
        image=image,
        after_image=(after,),
    )
    return ChatEncoder(tokenizer, form, tokenizer.all_special_tokens)


def _render(tokenizer: Any, chat: list[dict[str, Any]], answer: bool) -> str:
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=answer))
