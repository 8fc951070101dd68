"""Which past turns the model still sees. Every policy keeps or drops whole turns, newest kept first.

A policy may carry two more wishes, which the renderer honours: past turns lose their images
(`images="none"`: the policy returns them without), and the way past turns are laid out
(`layout`): "chat" gives every past turn its own user and assistant message, with the sampled ids;
"transcript" puts all past answers into one line of the current message, a handful of tokens a
turn, for models whose prompts must be short. A transcript recalls the actions, or with
`recall="observation"` also what the model said it saw: a memory of what is out of view by now.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rllib_vlm.errors import ConfigErrors
from rllib_vlm.prompts.base import Exchange

Layout = Literal["chat", "transcript"]
PastImages = Literal["none", "all"]
Recall = Literal["actions", "observation"]


@dataclass(frozen=True)
class _Window:
    images: PastImages
    layout: Layout
    recall: Recall

    def __post_init__(self) -> None:
        errors = [
            f"{key} is {value!r}, not one of {', '.join(known)}"
            for key, value, known in (
                ("images", self.images, get_args(PastImages)),
                ("layout", self.layout, get_args(Layout)),
                ("recall", self.recall, get_args(Recall)),
            )
            if value not in known
        ]
        k = getattr(self, "k", 1)
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            errors.append(f"k is {k!r}, not a whole number of at least 1; for no past turns use 'current'")
        if errors:
            raise ConfigErrors(f"history {type(self).__name__}", errors)

    def _without_images(self, past: Sequence[Exchange]) -> list[Exchange]:
        if self.images == "all":
            return list(past)
        return [dataclasses.replace(exchange, images=()) for exchange in past]


@dataclass(frozen=True, kw_only=True)
class Full(_Window):
    """Every past turn, images included unless told otherwise."""

    images: PastImages = "all"
    layout: Layout = "chat"
    recall: Recall = "actions"

    @property
    def only_grows(self) -> bool:
        """Whether a prompt begins with the one before (up to its images, where past ones are dropped)."""
        return self.layout == "chat"

    def __call__(self, past: Sequence[Exchange]) -> Sequence[Exchange]:
        return self._without_images(past)


@dataclass(frozen=True, kw_only=True)
class LastK(_Window):
    """The last `k` turns; by default their texts and answers only, images being dear."""

    k: int
    images: PastImages = "none"
    layout: Layout = "chat"
    recall: Recall = "actions"

    def __call__(self, past: Sequence[Exchange]) -> Sequence[Exchange]:
        return self._without_images(past[-self.k :])


@dataclass(frozen=True)
class Current:
    """No past turn at all: the policy has no memory but what the observation holds."""

    layout: Layout = dataclasses.field(default="chat", init=False)

    def __call__(self, past: Sequence[Exchange]) -> Sequence[Exchange]:
        return ()
