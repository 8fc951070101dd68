"""Protocols of the prompt layer: how turns become messages, and how an answer becomes actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rllib_vlm.types import ActionSet, Demonstration, Image, ParsedAction


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One past turn as the prompt layer remembers it: what was seen and what was answered."""

    text: str
    images: tuple[Image, ...]
    answer: str
    answer_ids: NDArray[np.int64] | None = None  # [T] the sampled ids, if the model sampled it


class ActionParser(Protocol):
    """An answer format, in both directions."""

    def instructions(self, actions: ActionSet, max_actions: int) -> str:
        """The format in words; goes into the system prompt, so format and parser cannot drift apart."""

    def __call__(self, text: str, actions: ActionSet, max_actions: int) -> ParsedAction:
        """Never raises, whatever the text."""

    def format(self, demonstration: Demonstration, actions: ActionSet) -> str:
        """The answer an expert would write; parsing it gives the demonstration's actions back."""


class HistoryPolicy(Protocol):
    """Which past turns the model still sees."""

    def __call__(self, past: Sequence[Exchange]) -> Sequence[Exchange]: ...
