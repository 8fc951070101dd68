r"""Llama 3's chat format, and the tokens it is made of.

The template that comes with Llama 3.2 Vision refuses a system message beside images, and puts a date of its own before
conversations without images. Here system messages are written as Llama 3 writes them, and nothing is added.
"""

from __future__ import annotations

from typing import Any

from rllib_vlm.errors import ModelError
from rllib_vlm.models.chat import ChatEncoder, ChatFormat
from rllib_vlm.models.tokenizer import ChatTokens
from rllib_vlm.types import Role

_BEGIN, _START, _CLOSE, _END, IMAGE = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|image|>",
)
ROLES: tuple[Role, ...] = ("system", "user", "assistant")

CHAT_TEMPLATE = (
    "{{ '" + _BEGIN + "' }}{% for message in messages %}"
    "{{ '" + _START + "' + message['role'] + '" + _CLOSE + "\n\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE + "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}" + _END + "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + _START + "assistant" + _CLOSE + "\n\n' }}{% endif %}"
)

# The names Llama 3.2 Vision gives its tokens; the image's is behind all others, where the output layer does not reach.
LLAMA = ChatTokens(
    tokens=(
        _BEGIN,
        "<|end_of_text|>",
        "<|finetune_right_pad_id|>",
        _START,
        _CLOSE,
        "<|eom_id|>",
        _END,
        "<|python_tag|>",
    ),
    beyond=(IMAGE,),
    begin=_BEGIN,
    end=_END,
    pad="<|finetune_right_pad_id|>",
    template=CHAT_TEMPLATE,
)


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Id and spelling of every special token, also of those that have no role in the tokenizer's settings."""
    added = {int(i): str(t) for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    return added | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def llama_chat(tokenizer: Any, image: int) -> ChatEncoder:
    """For a tokenizer of Llama 3.

    Args:
        image: id of the token that stands for an image.

    Raises:
        ModelError: the tokenizer lacks a token of the format, or ends its answers otherwise.
    """
    special = special_tokens(tokenizer)
    missing = [token for token in (_BEGIN, _START, _CLOSE, _END) if token not in special.values()]
    if missing or tokenizer.eos_token != _END:
        what = (
            f"it lacks {', '.join(missing)}" if missing else f"its answers end with {tokenizer.eos_token!r}"
        )
        raise ModelError(
            f"the tokenizer does not write Llama 3's chat format: {what}. Take a checkpoint that was tuned to"
            " instructions, e.g. meta-llama/Llama-3.2-11B-Vision-Instruct"
        )
    form = ChatFormat(
        start=_START,
        heads={role: _head(role) for role in ROLES},
        tail=_END,
        answer=_head("assistant"),
        opening=_BEGIN,
        image=image,
    )
    return ChatEncoder(tokenizer, form, list(special.values()))


def _head(role: Role) -> str:
    return f"{_START}{role}{_CLOSE}\n\n"
