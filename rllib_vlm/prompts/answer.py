"""What every answer format shares: where an answer ends, and how words become actions."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import lru_cache

from rllib_vlm.types import ActionSet, ParsedAction

# End-of-turn texts of the common chat formats. A completion keeps its stop token, so its text may
# end with one of them (and with padding after it); that is no fault of the answer.
STOP_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<end_of_utterance>", "</s>", "<eos>")

_SHOWN = 24  # characters of a model's own words that a reason quotes


class FormatError(Exception):
    """Raised and caught inside the parsers only: why an answer is not in the format."""


def quote(text: str) -> str:
    """A short, printable quotation of a model's words (escapes what logs cannot hold)."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def answer_end(text: str, stop_tokens: Sequence[str]) -> int:
    """Index behind the last character of `text` that is neither blank nor part of a stop token."""
    end = len(text)
    while end > 0:
        # One more stop token or run of blanks per round; slices stay short, so this is linear.
        token = next((t for t in stop_tokens if t and text.endswith(t, 0, end)), "")
        if token:
            end -= len(token)
        elif text[end - 1].isspace():
            end -= 1
        else:
            break
    return end


@lru_cache(maxsize=4096)
def _nearest(word: str, names: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.0)
    return close[0] if close else ""


def read_actions(
    words: Sequence[str], actions: ActionSet, max_actions: int, spans: Mapping[str, tuple[int, int]]
) -> ParsedAction:
    """The parsed answer for the words a model put where its actions belong.

    Blank words are skipped (a separator at the end is harmless), words beyond `max_actions` are cut
    unread and counted, and one unknown word among the rest makes the answer invalid: executing
    half of a plan would hide the mistake from the model.
    """
    given = [word for word in words if word.strip()]
    if not given:
        return ParsedAction(valid=False, reason="empty answer", spans=spans)
    kept, dropped = given[:max_actions], len(given[max_actions:])
    names = []
    for word in kept:
        name = actions.resolve(word)
        if name is None:
            nearest = _nearest(word.strip().lower()[:_SHOWN], actions.names)
            reason = f"unknown action {quote(word.strip())} (nearest: {nearest!r})"
            return ParsedAction(valid=False, reason=reason, spans=spans)
        names.append(name)
    reason = f"{dropped} of {len(given)} actions cut, at most {max_actions} a turn" if dropped else ""
    return ParsedAction(valid=True, actions=tuple(names), reason=reason, dropped_actions=dropped, spans=spans)
