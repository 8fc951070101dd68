"""Which tokens end an answer and which are never sampled, for this package and for transformers' `generate`."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig

from rllib_vlm.models.mllama.chat import special_tokens


def banned_token_ids(tokenizer: Any, config: Any) -> tuple[int, ...]:
    """Ids of the output layer that are never sampled: special tokens but the end of an answer, and ids without a token.

    The image token of released models is behind the output layer's last id, so it cannot be sampled at all.

    Args:
        config: of the model.
    """
    size, stop = config.text_config.vocab_size, int(tokenizer.eos_token_id)
    banned = {*special_tokens(tokenizer), int(config.image_token_id), *range(len(tokenizer), size)}
    return tuple(sorted(i for i in banned if i != stop and i < size))


def generation_config(tokenizer: Any, config: Any) -> GenerationConfig:
    """What transformers' `generate` is told so that it draws from the distribution that was trained.

    A released checkpoint's own file has a top-p and a temperature, of which training knew nothing.
    """
    stop, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=int(stop),
        pad_token_id=int(stop if pad is None else pad),
        suppress_tokens=list(banned_token_ids(tokenizer, config)),
    )
