"""What every answer format shares: where an answer ends, and how words or a text become actions."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache

from rllib_vlm.errors import quote
from rllib_vlm.json_object import JSONObjectError, read_object
from rllib_vlm.types import ActionSet, ParsedAction

# End-of-turn texts of the common chat formats. A completion keeps its stop token, so its text may
# end with one of them (and with padding after it); that is no fault of the answer.
STOP_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<end_of_utterance>", "</s>", "<eos>")

_SHOWN = 24  # characters of a word that are looked at to find the nearest action


class FormatError(Exception):
    """Raised and caught inside the parsers only: why an answer is not in the format."""


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


def example_text(actions: ActionSet) -> str:
    """An action of a free-text set, on one line: the members it asks for with their example values."""
    return json.dumps(dict(actions.fields), ensure_ascii=False)


def read_text(
    text: str,
    start: int,
    end: int,
    actions: ActionSet,
    spans: dict[str, tuple[int, int]],
    *,
    strict: bool = True,
    verbatim: bool = False,
) -> ParsedAction:
    """The parsed answer whose one action is the JSON object in `text[start:end]`, as it is written there.

    Spans that are added: "answer" is the value of the set's last member, the decision, and "think" the
    members before it.

    Args:
        text: of the answer.
        start: where the object, or what stands for it, begins.
        end: where it ends.
        actions: a set with `fields`; each must be a member.
        spans: parts of the answer that were found before; gets those found here.
        strict: False forgives text around the object.
        verbatim: whether all of the text is the action, be there such an object in it or not.
    """
    said = text[start:end].strip()
    reason = ""
    try:
        members = read_object(text[start:end], strict=strict)
        missing = [name for name in actions.fields if name not in members]
        if missing:
            near = f" (nearest: {quote(_nearest(missing[0], tuple(members)))})" if members else ""
            reason = f"no member {missing[0]!r}{near}"
        else:
            if not verbatim:
                said = text[start + members.start : start + members.stop]
            _, begin, stop = members[list(actions.fields)[-1]]
            spans["answer"] = (start + begin, start + stop)
            spans.setdefault("think", (start + members.start, start + begin))
    except JSONObjectError as error:
        reason = str(error)
    if not said:
        return ParsedAction(valid=False, reason="empty answer", spans=spans)
    if reason and not verbatim:
        return ParsedAction(valid=False, reason=reason, spans=spans)
    return ParsedAction(valid=True, actions=(said,), reason=reason, spans=spans)
