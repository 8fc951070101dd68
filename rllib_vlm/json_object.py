"""Reads a JSON object that a model wrote: trailing commas are understood, and every member knows where it stands."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from rllib_vlm.errors import quote

_BLANKS = re.compile(r"[ \t\n\r]*")
# A string (even one that is never closed, so that each character is looked at once) or a comma
# that only blanks part from a closing bracket.
_STRING_OR_TRAILING_COMMA = re.compile(r'"(?:[^"\\]|\\.?)*+(?:"|\Z)|,(?=[ \t\n\r]*[}\]])', re.DOTALL)
_DECODER = json.JSONDecoder()


class Member(NamedTuple):
    """A member's value, and the range of the text in which it is written."""

    value: Any
    start: int
    stop: int


class JSONObject(dict[str, Member]):
    """The members of an object, by their keys.

    Attributes:
        start, stop: the range of the text that the object takes, braces included.
    """

    start: int = 0
    stop: int = 0


class JSONObjectError(ValueError):
    """Why a text is not the object that was asked for."""


def read_object(text: str, *, strict: bool = True) -> JSONObject:
    """The JSON object that `text` is, or with `strict=False` the first one in it.

    Raises:
        JSONObjectError: there is none, it is broken, or a key stands twice.
    """
    # Blanks in place of the commas keep every offset.
    clean = _STRING_OR_TRAILING_COMMA.sub(lambda m: " " if m[0] == "," else m[0], text)
    start = _skip(clean, 0) if strict else max(0, clean.find("{"))
    if not clean.startswith("{", start):
        at = clean.find("{")
        raise JSONObjectError(
            "no JSON object" if at < 0 else f"text before '{{': {quote(clean[:at].strip())}"
        )
    members = JSONObject()
    at = _skip(clean, start + 1)
    while not clean.startswith("}", at):
        if members:
            at = _skip(clean, _punctuation(clean, at, ","))
        key, at = _value(clean, at)
        if not isinstance(key, str):
            raise JSONObjectError(f"a key is a {type(key).__name__}, not a string")
        if key in members:
            raise JSONObjectError(f"the key {quote(key)} stands twice")
        begin = _skip(clean, _punctuation(clean, _skip(clean, at), ":"))
        value, stop = _value(clean, begin)
        members[key] = Member(value, begin, stop)
        at = _skip(clean, stop)
    members.start, members.stop = start, at + 1
    if strict and clean[at + 1 :].strip():
        raise JSONObjectError(f"text after '}}': {quote(clean[at + 1 :].strip())}")
    return members


def _skip(text: str, at: int) -> int:
    blanks = _BLANKS.match(text, at)
    return blanks.end() if blanks else at


def _punctuation(text: str, at: int, mark: str) -> int:
    if text.startswith(mark, at):
        return at + 1
    found = quote(text[at : at + 8]) if at < len(text) else "the end (cut off?)"
    raise JSONObjectError(f"broken JSON at character {at}: expected {mark!r}, found {found}")


def _value(text: str, at: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        cut = " (cut off?)" if error.pos >= len(text) else ""
        raise JSONObjectError(f"broken JSON at character {error.pos}: {error.msg}{cut}") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits; brackets too deep
        raise JSONObjectError(f"unreadable JSON at character {at}: {type(error).__name__}") from error
