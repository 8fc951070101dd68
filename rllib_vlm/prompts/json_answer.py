"""The JSON answer formats.

`{"thoughts": "..", "actions": ["move_ahead", "rotate_right"]}`, and V-IRL's, in which an agent first says what it sees
and which instruction is due: `{"current observation": "..", "current instruction": "..", "action": "done"}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from rllib_vlm.prompts.answer import STOP_TOKENS, FormatError, answer_end, quote, read_actions
from rllib_vlm.types import ActionSet, Demonstration, ParsedAction

_THOUGHTS = ("thoughts", "reasoning")
_BLANKS = re.compile(r"[ \t\n\r]*")
# A string (even one that is never closed, so that each character is looked at once) or a comma
# that only blanks part from a closing bracket.
_STRING_OR_TRAILING_COMMA = re.compile(r'"(?:[^"\\]|\\.?)*+(?:"|\Z)|,(?=[ \t\n\r]*[}\]])', re.DOTALL)
_DECODER = json.JSONDecoder()

Members = dict[str, tuple[Any, int, int]]


class JSONAnswer:
    """Reads and writes one JSON object; further keys are allowed and ignored.

    `actions` is a list of names; `thoughts` (or `reasoning`) may be left out. Trailing commas are
    understood. Spans: "think" is the thoughts' string and "answer" the list, quotes and brackets
    included.

    Args:
        strict: False forgives text around the object, such as a Markdown code fence.
        stop_tokens: texts that may end an answer.
    """

    def __init__(self, *, strict: bool = True, stop_tokens: Sequence[str] = STOP_TOKENS) -> None:
        self.strict = strict
        self.stop_tokens = tuple(stop_tokens)

    def instructions(self, actions: ActionSet, max_actions: int) -> str:
        """The format in words. Its second line is itself an answer in the format."""
        form = self.format(
            Demonstration(actions=actions.names[: min(2, max_actions)], reasoning="why you act this way")
        )
        many = "exactly one action" if max_actions == 1 else f"1 to {max_actions} actions"
        return f'Answer with one JSON object and nothing else, in this form:\n{form}\n"actions" lists {many}.'

    def __call__(self, text: str, actions: ActionSet, max_actions: int) -> ParsedAction:
        spans: dict[str, tuple[int, int]] = {}
        try:
            words = self._words(self._members(text), spans)
        except FormatError as error:
            return ParsedAction(valid=False, reason=str(error), spans=spans)
        return read_actions(words, actions, max_actions, spans)

    def format(self, demonstration: Demonstration) -> str:
        """The expert's answer. One without actions (it gave up) is written, but parses as empty."""
        answer: dict[str, Any] = {}
        if demonstration.reasoning:
            answer["thoughts"] = demonstration.reasoning
        answer["actions"] = list(demonstration.actions)
        return json.dumps(answer, ensure_ascii=False)

    def _words(self, members: Members, spans: dict[str, tuple[int, int]]) -> list[str]:
        for key in _THOUGHTS:
            if key in members:
                thoughts, start, stop = members[key]
                if not isinstance(thoughts, str):
                    raise FormatError(f"{key!r} is a {type(thoughts).__name__}, not a string")
                spans["think"] = (start, stop)
                break
        if "actions" not in members:
            raise FormatError("no 'actions' list")
        listed, start, stop = members["actions"]
        if not isinstance(listed, list):
            raise FormatError(f"'actions' is a {type(listed).__name__}, not a list")
        spans["answer"] = (start, stop)
        for number, word in enumerate(listed, 1):
            if not isinstance(word, str):
                raise FormatError(f"action {number} is a {type(word).__name__}, not a string")
        return listed

    def _members(self, text: str) -> Members:
        """Key -> (value, start, stop) of the object in `text`; offsets are those of `text`."""
        end = answer_end(text, self.stop_tokens)
        # Blanks in place of the commas keep every offset.
        clean = _STRING_OR_TRAILING_COMMA.sub(lambda m: " " if m[0] == "," else m[0], text[:end])
        start = _skip(clean, 0) if self.strict else max(0, clean.find("{"))
        if not clean.startswith("{", start):
            at = clean.find("{")
            raise FormatError(
                "no JSON object" if at < 0 else f"text before '{{': {quote(clean[:at].strip())}"
            )
        members: Members = {}
        at = _skip(clean, start + 1)
        while not clean.startswith("}", at):
            if members:
                at = _skip(clean, _punctuation(clean, at, ","))
            key, at = _value(clean, at)
            if not isinstance(key, str):
                raise FormatError(f"a key is a {type(key).__name__}, not a string")
            if key in members:
                raise FormatError(f"the key {quote(key)} stands twice")
            begin = _skip(clean, _punctuation(clean, _skip(clean, at), ":"))
            value, stop = _value(clean, begin)
            members[key] = (value, begin, stop)
            at = _skip(clean, stop)
        if self.strict and at + 1 < len(clean):
            raise FormatError(f"text after '}}': {quote(clean[at + 1 :].strip())}")
        return members


class JSONGrounding(JSONAnswer):
    """One JSON object that says what is seen, which instruction is due, and one action.

    `action` is a name, or a list of names where a turn has several. Further keys are allowed and ignored, and only
    `action` is required. Spans: "observation", "reasoning" (the instruction) and "answer", quotes included.
    """

    def instructions(self, actions: ActionSet, max_actions: int) -> str:
        """The format in words. Its second line is itself an answer in the format."""
        form = self.format(
            Demonstration(
                actions=actions.names[: min(2, max_actions)],
                observation="what you see",
                reasoning="the instruction to carry out now",
            )
        )
        many = (
            "is exactly one action"
            if max_actions == 1
            else f"is one action, or a list of up to {max_actions}"
        )
        return f'Answer with one JSON object and nothing else, in this form:\n{form}\n"action" {many}.'

    def format(self, demonstration: Demonstration) -> str:
        """The expert's answer. One without actions (it gave up) is written, but parses as empty."""
        one = len(demonstration.actions) == 1
        answer = {
            "current observation": demonstration.observation,
            "current instruction": demonstration.reasoning,
            "action": demonstration.actions[0] if one else list(demonstration.actions),
        }
        return json.dumps(answer, ensure_ascii=False)

    def _words(self, members: Members, spans: dict[str, tuple[int, int]]) -> list[str]:
        for key, part in (("current observation", "observation"), ("current instruction", "reasoning")):
            if key in members:
                said, start, stop = members[key]
                if not isinstance(said, str):
                    raise FormatError(f"{key!r} is a {type(said).__name__}, not a string")
                spans[part] = (start, stop)
        if "action" not in members:
            raise FormatError("no 'action'")
        value, start, stop = members["action"]
        words = [value] if isinstance(value, str) else value
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise FormatError(f"'action' is a {type(value).__name__}, neither a string nor a list of strings")
        spans["answer"] = (start, stop)
        return words


def _skip(text: str, at: int) -> int:
    blanks = _BLANKS.match(text, at)
    return blanks.end() if blanks else at


def _punctuation(text: str, at: int, mark: str) -> int:
    if text.startswith(mark, at):
        return at + 1
    found = quote(text[at : at + 8]) if at < len(text) else "the end (cut off?)"
    raise FormatError(f"broken JSON at character {at}: expected {mark!r}, found {found}")


def _value(text: str, at: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        cut = " (cut off?)" if error.pos >= len(text) else ""
        raise FormatError(f"broken JSON at character {error.pos}: {error.msg}{cut}") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits; brackets too deep
        raise FormatError(f"unreadable JSON at character {at}: {type(error).__name__}") from error
