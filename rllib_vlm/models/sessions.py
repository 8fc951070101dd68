"""Keys and values of conversations, kept between their turns.

What a turn adds to a conversation is all that has to be computed for the next answer, as long as what stood
before still stands there. A session's name only says where to look: what is taken is the longest beginning
that agrees token by token and, for images, pixel by pixel. A history that drops or rewrites turns finds less, or
nothing, and never something wrong.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from rllib_vlm.errors import ModelError
from rllib_vlm.types import Image, Prompt

Session = Hashable
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Past:
    """Keys and values of a row's first tokens."""

    pairs: Tensor  # [layers, heads, S, d], of which the first are the row's, and the others nobody's
    tokens: int


# Of a row: its place among its batch, what was sampled, and its first tokens.
Keep = Callable[[int, NDArray[np.int64], Past], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpan:
    """An image in a row of tokens: those from `start` to before `stop`."""

    start: int
    stop: int
    key: int  # of its size and pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What keys and values follow from, beside the weights."""

    token_ids: NDArray[np.int64]  # [S]
    images: tuple[ImageSpan, ...] = ()

    @classmethod
    def of(cls, prompt: Prompt, image_token: int, tokens: Callable[[int, int], int]) -> Content | None:
        """Of a prompt; None where its image tokens are not those of its images.

        Args:
            image_token: stands in the prompt for each token of an image.
            tokens: image tokens of a picture of (height, width) pixels.
        """
        counts = [tokens(*image.shape[:2]) for image in prompt.images]
        where = np.flatnonzero(prompt.token_ids == image_token)
        if sum(counts) != len(where):
            return None
        first = np.cumsum([0, *counts])[:-1]
        spans = tuple(
            ImageSpan(start=int(where[at]), stop=int(where[at]) + count, key=_key(image))
            for at, count, image in zip(first, counts, prompt.images, strict=True)
        )
        return cls(token_ids=prompt.token_ids, images=spans)

    def followed_by(self, token_ids: NDArray[np.int64]) -> Content:
        """With an answer behind it."""
        return Content(token_ids=np.concatenate([self.token_ids, token_ids]), images=self.images)

    def beginning_of(self, prompt: Content) -> int:
        """Tokens that both begin with: whole images, and short of the prompt's last token, which predicts."""
        size = min(len(self.token_ids), len(prompt.token_ids) - 1)
        differs = self.token_ids[:size] != prompt.token_ids[:size]
        common = int(differs.argmax()) if differs.any() else size
        for own, other in zip(self.images, prompt.images, strict=False):
            if own.key != other.key:
                common = min(common, own.start, other.start)
                break
        for image in prompt.images:
            if image.start < common < image.stop:
                common = image.start
        return common


@dataclass(frozen=True, slots=True)
class _Kept:
    content: Content
    pairs: Tensor  # [layers, heads, S, d], as of `Past`

    @property
    def size(self) -> int:
        return self.pairs.numel() * self.pairs.element_size()


@dataclass(slots=True)
class SessionCache:
    """Keys and values of many conversations, of the least recently used ones dropped beyond a budget.

    Args:
        budget_mib: MiB of keys and values, on the model's device, that are kept between turns; 0 keeps none.

    Raises:
        ModelError: the budget is no number from 0 up.
    """

    budget_mib: float = 0
    computed: int = 0  # prompt tokens so far
    reused: int = (
        0  # prompt tokens so far whose keys and values were there, from earlier turns or other prompts
    )
    _kept: OrderedDict[Session, _Kept] = field(default_factory=OrderedDict)
    _bytes: int = 0
    _weights: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        budget = self.budget_mib
        if isinstance(budget, bool) or not isinstance(budget, int | float) or not budget >= 0:
            raise ModelError(f"session_cache_mib is {budget!r}; give the MiB to keep, or 0 to keep nothing")

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def enabled(self) -> bool:
        return self.budget_mib > 0

    @property
    def used_mib(self) -> float:
        return self._bytes / _MIB

    def of_weights(self, model: nn.Module) -> None:
        """Drops everything if the weights are not those of the last call."""
        if not self.enabled:
            return
        # Torch counts what is written into a tensor in place; that tells of an optimizer's step on shared weights
        # (but not of one of torch's fused optimizers: whoever takes those must `clear`).
        weights = tuple((p.data_ptr(), p._version) for p in model.parameters())
        if weights != self._weights:
            self.clear()
            self._weights = weights

    def take(self, session: Session, content: Content) -> Past | None:
        """What is kept of a prompt's first tokens; None where nothing is.

        It is the caller's, who may write behind these tokens, and gives it back by `keep`; nobody finds it meanwhile.
        """
        kept = self._kept.get(session)
        if kept is None:
            return None
        self.end(session)
        common = kept.content.beginning_of(content)
        return Past(kept.pairs, common) if common else None

    def keep(self, session: Session, content: Content, pairs: Tensor) -> None:
        """Keeps a conversation's keys and values [layers, heads, S, d] in place of those there were.

        Args:
            content: of its tokens, up to S of them.
        """
        self.end(session)
        kept = _Kept(content, pairs)
        self._kept[session] = kept
        self._bytes += kept.size
        while self._bytes > self.budget_mib * _MIB:
            self.end(next(iter(self._kept)))

    def end(self, session: Session) -> None:
        """Frees what is kept of a conversation, if anything is."""
        kept = self._kept.pop(session, None)
        if kept is not None:
            self._bytes -= kept.size

    def clear(self) -> None:
        """Frees everything."""
        self._kept.clear()
        self._bytes = 0


class Turns:
    """A batch of prompts, what is kept of their conversations, and where what is computed of them goes.

    Args:
        cache: of all conversations.
        sessions: the conversation of each prompt; None for one that is nobody's.
        content: of a prompt.
    """

    def __init__(
        self,
        cache: SessionCache,
        prompts: Sequence[Prompt],
        sessions: Sequence[Session | None],
        content: Callable[[Prompt], Content | None],
    ) -> None:
        self._cache = cache
        self._sessions = sessions
        self._lengths = [len(p.token_ids) for p in prompts]
        self._contents = [
            content(prompt) if cache.enabled and session is not None else None
            for prompt, session in zip(prompts, sessions, strict=True)
        ]
        # All are taken before any is computed: a turn of the batch does not push out what another needs.
        self.pasts = [
            None if own is None else cache.take(session, own)
            for session, own in zip(sessions, self._contents, strict=True)
        ]
        self.kept = [0 if past is None else past.tokens for past in self.pasts]

    def count(self, chosen: Sequence[int], computed: int) -> None:
        """Tells of some of the prompts how many of their tokens were computed."""
        self._cache.computed += computed
        self._cache.reused += sum(self._lengths[i] for i in chosen) - computed

    def keeper(self, chosen: Sequence[int]) -> Keep | None:
        """What keeps the turns of these prompts; None where none is part of a conversation."""
        if all(self._contents[i] is None for i in chosen):
            return None

        def keep(row: int, sampled: NDArray[np.int64], past: Past) -> None:
            i = chosen[row]
            content = self._contents[i]
            if content is not None:
                known = sampled[: past.tokens - self._lengths[i]]
                self._cache.keep(self._sessions[i], content.followed_by(known), past.pairs)

        return keep


def _key(image: Image) -> int:
    # SipHash with a key of this process, 64 bits: five times as fast as a digest, and no pixels are kept here.
    return hash((image.shape, image.tobytes()))
