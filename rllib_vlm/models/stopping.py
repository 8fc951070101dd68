"""Stop strings: when a completion's text ends it, whatever tokens spell the string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class StopStrings:
    """Tells whether the latest token has completed one of `strings`.

    Only the tokens at the end that could hold the string are decoded, so a step costs the same
    however long the completion.
    """

    def __init__(self, tokenizer: Any, strings: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._strings = tuple(s for s in strings if s)
        # Every token adds at least one byte, so no string spans more tokens than it has bytes; a
        # character cut by the window's edge is at most 3 bytes more.
        self._window = max((len(s.encode()) for s in self._strings), default=0) + 3
        self._tails: dict[tuple[int, ...], bool] = {}

    def __call__(self, token_ids: Sequence[int]) -> bool:
        tail = tuple(token_ids[-self._window :])
        found = self._tails.get(tail)
        if found is None:
            text = self._tokenizer.decode(
                list(tail), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            found = self._tails[tail] = any(s in text for s in self._strings)
        return found
