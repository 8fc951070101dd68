"""What is taken from an earlier turn, and what is dropped when there is no room."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_vlm.errors import ModelError
from rllib_vlm.models.sessions import Content, SessionCache
from rllib_vlm.types import Image, Prompt

IMAGE = 9
_PICTURES = [np.full((2, 2 * tokens, 3), shade, np.uint8) for shade in (0, 200) for tokens in (1, 3)]

# A conversation: tokens 0 to 2, and pictures by number.
pieces = st.lists(st.one_of(st.integers(0, 2), st.sampled_from(["p0", "p1", "p2", "p3"])), min_size=1)


def tokens_of(height: int, width: int) -> int:
    return height // 2 * (width // 2)


def prompt_of(parts: list[int | str]) -> Prompt:
    ids: list[int] = []
    images: list[Image] = []
    for part in parts:
        if isinstance(part, int):
            ids.append(part)
            continue
        image = _PICTURES[int(part[1])]
        images.append(image)
        ids += [IMAGE] * tokens_of(*image.shape[:2])
    return Prompt(token_ids=np.array(ids), images=tuple(images))


def content_of(parts: list[int | str]) -> Content:
    content = Content.of(prompt_of(parts), IMAGE, tokens_of)
    assert content is not None
    return content


def whole_pieces(own: list[int | str], other: list[int | str]) -> int:
    """Tokens of the longest common beginning in pieces, short of the last token of `other`."""
    size, limit = 0, len(prompt_of(other).token_ids) - 1
    for a, b in zip(own, other, strict=False):
        length = len(prompt_of([a]).token_ids)
        if a != b or size + length > limit:
            break
        size += length
    return size


@settings(max_examples=200, deadline=None)
@given(pieces, pieces, pieces)
def test_what_agrees_is_whole_pieces_of_both(
    start: list[int | str], own: list[int | str], other: list[int | str]
) -> None:
    own, other = start + own, start + other
    assert content_of(own).beginning_of(content_of(other)) == whole_pieces(own, other)
    assert content_of(own).beginning_of(content_of(own)) == whole_pieces(own, own)


def test_an_answer_is_part_of_what_was_said() -> None:
    said = content_of([1, "p1", 2]).followed_by(np.array([1, 0]))
    assert said.beginning_of(content_of([1, "p1", 2, 1, 0, 2, "p0"])) == 7
    assert said.beginning_of(content_of([1, "p1", 2, 1, 1, 2])) == 6
    assert said.beginning_of(content_of([1, "p3", 2, 1, 0, 2])) == 1  # as large, other pixels


def test_images_that_do_not_fit_their_tokens_are_no_content() -> None:
    assert Content.of(Prompt(token_ids=np.array([1, IMAGE, 2])), IMAGE, tokens_of) is None


def pairs(tokens: int) -> torch.Tensor:
    """A quarter of a MiB for 64 tokens."""
    return torch.full((2, 4, tokens, 128), float(tokens))


def test_the_least_recently_used_goes_first() -> None:
    cache = SessionCache(1.0)
    content = Content(token_ids=np.arange(64))
    longer = Content(token_ids=np.arange(65))
    for name in "abcd":
        cache.keep(name, content, pairs(64))
    assert len(cache) == 4 and cache.used_mib == 1.0
    found = cache.take("a", longer)
    assert found is not None and found.tokens == 64
    assert cache.take("a", longer) is None and cache.used_mib == 0.75  # nobody else's meanwhile
    cache.keep("a", content, found.pairs)
    cache.keep("e", content, pairs(64))
    cache.keep("c", longer, pairs(65))  # grows, and pushes one out
    assert len(cache) == 3 and cache.used_mib <= 1.0
    assert [cache.take(name, longer) is not None for name in "abde"] == [True, False, False, True]
    cache.end("c")
    cache.end("nobody")
    assert len(cache) == 0 and cache.used_mib == 0
    cache.keep("huge", Content(token_ids=np.arange(300)), pairs(300))
    assert cache.take("huge", longer) is None and cache.used_mib <= 1.0


def test_other_weights_find_nothing() -> None:
    cache, model = SessionCache(1.0), torch.nn.Linear(2, 2)
    prompt = Content(token_ids=np.arange(65))
    cache.of_weights(model)
    cache.keep("a", Content(token_ids=np.arange(64)), pairs(64))
    cache.of_weights(model)
    assert len(cache) == 1
    with torch.no_grad():
        model.weight.add_(1.0)
    cache.of_weights(model)
    assert cache.take("a", prompt) is None and cache.used_mib == 0


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ModelError, match="session_cache_mib is -1; give the MiB"):
        SessionCache(-1)
