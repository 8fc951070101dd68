"""Which tokens end an answer and which are never sampled, for this package and for transformers' `generate`."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig


def banned_token_ids(tokenizer: Any, config: Any) -> tuple[int, ...]:
    """Ids that are never sampled: special tokens but the end of an answer, and rows of the vocabulary without a token.

    Args:
        config: of the model.
    """
    banned = {*tokenizer.all_special_ids, *range(len(tokenizer), config.text_config.vocab_size)}
    banned |= {config.image_token_id, config.video_token_id}
    return tuple(sorted(int(i) for i in banned if int(i) != int(tokenizer.eos_token_id)))


def generation_config(tokenizer: Any, config: Any) -> GenerationConfig:
    """What transformers' `generate` is told so that it draws from the distribution that was trained.

    A released checkpoint's own file has a repetition penalty and more, of which training knew nothing.
    """
    stop, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    return GenerationConfig(
        eos_token_id=int(stop),
        pad_token_id=int(stop if pad is None else pad),
        suppress_tokens=list(banned_token_ids(tokenizer, config)),
    )
