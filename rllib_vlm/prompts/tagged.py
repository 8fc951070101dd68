"""Answer formats made of tags: one reader and writer, and a table row (a class) per format.

The five formats are VAGEN's (arXiv 2510.16907; docs of RAGEN-AI/VAGEN)::

    no_think                  <answer>..</answer>
    free_think                <think>..</think><answer>..</answer>
    grounding                 <think><observation>..</observation><reasoning>..</reasoning></think>
                              <answer>..</answer>
    worldmodeling             <think><reasoning>..</reasoning><prediction>..</prediction></think>
                              <answer>..</answer>
    grounding_worldmodeling   <think><observation>..</observation><reasoning>..</reasoning>
                              <prediction>..</prediction></think><answer>..</answer>

Unlike VAGEN's own parsers, an answer that breaks the format never moves the agent: it has no
actions, in all five formats, and a reason. A format of your own is a subclass that sets `tags`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rllib_vlm.errors import ConfigErrors, quote
from rllib_vlm.prompts.answer import (
    STOP_TOKENS,
    FormatError,
    answer_end,
    example_text,
    read_actions,
    read_text,
)
from rllib_vlm.types import ActionSet, Demonstration, ParsedAction

_BLANKS = re.compile(r"\s*")


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag of a format: either it holds other tags, or free text."""

    name: str
    parts: tuple[Tag, ...] = ()
    hint: str = ""  # what the instructions show as the text
    field: str = ""  # the field of a Demonstration an expert's text comes from

    @property
    def start(self) -> str:
        return f"<{self.name}>"

    @property
    def stop(self) -> str:
        return f"</{self.name}>"

    def walk(self) -> Iterator[Tag]:
        yield self
        for part in self.parts:
            yield from part.walk()


OBSERVATION = Tag("observation", hint="what you see", field="observation")
REASONING = Tag("reasoning", hint="why you act this way", field="reasoning")
PREDICTION = Tag("prediction", hint="what you will see next", field="prediction")
THINK = Tag("think", hint="your reasoning", field="reasoning")
ANSWER = Tag("answer")


class Tagged:
    """Reads and writes the format `tags`, anchored at both ends.

    Blanks may stand before, between and after tags, and a stop token at the very end. The text of
    a tag may hold anything but the format's own tags, so every answer has one reading.

    Args:
        separator: stands between actions; a blank one means any run of blanks.
        strict: False forgives text before the first and after the last tag.
        padded: experts write a blank after the tags of what they say (not of the actions): with most
            tokenizers a word then is the same token there as in the instruction, and easier to copy.
        stop_tokens: texts that may end an answer.

    Raises:
        ConfigErrors: the separator is empty or could be taken for a tag.
    """

    tags: ClassVar[tuple[Tag, ...]]

    def __init__(
        self,
        *,
        separator: str = ",",
        strict: bool = True,
        padded: bool = False,
        stop_tokens: Sequence[str] = STOP_TOKENS,
    ) -> None:
        if not separator or set(separator) & set("<>"):
            raise ConfigErrors(
                f"parser {type(self).__name__}",
                [f"separator is {separator!r}: give at least one character other than '<', '>', e.g. ','"],
            )
        self.separator = separator
        self.strict = strict
        self.padded = padded
        self.stop_tokens = tuple(stop_tokens)
        every = [tag for top in self.tags for tag in top.walk()]
        self._markers = tuple(m for tag in every for m in (tag.start, tag.stop))

    def instructions(self, actions: ActionSet, max_actions: int) -> str:
        """The format in words. Its second line is itself an answer in the format.

        Raises:
            ConfigErrors: an action's name holds the separator, so no answer could name it.
        """
        broken = [name for name in actions.names if len(self._split(name)) > 1]
        if broken:
            raise ConfigErrors(
                f"parser {type(self).__name__}",
                [f"the action {n!r} holds the separator {self.separator!r}; choose another" for n in broken],
            )
        example = (
            example_text(actions) if actions.is_text else self._join(actions.names[: min(2, max_actions)])
        )
        form = "".join(_write(tag, lambda leaf: leaf.hint or example) for tag in self.tags)
        if actions.is_text:
            many = "Inside <answer> stands one JSON object; fill in values of your own."
        elif max_actions == 1:
            many = "Inside <answer> stands exactly one action."
        else:
            many = f"Inside <answer> stand 1 to {max_actions} actions, separated by {self.separator!r}."
        return f"Answer in exactly this form:\n{form}\n{many}"

    def __call__(self, text: str, actions: ActionSet, max_actions: int) -> ParsedAction:
        spans: dict[str, tuple[int, int]] = {}
        try:
            self._read(text, spans)
        except FormatError as error:
            return ParsedAction(valid=False, reason=str(error), spans=spans)
        start, stop = spans["answer"]
        if actions.is_text:
            return read_text(text, start, stop, actions, spans, strict=self.strict)
        return read_actions(self._split(text[start:stop]), actions, max_actions, spans)

    def format(self, demonstration: Demonstration, actions: ActionSet) -> str:
        """The expert's answer. One without actions (it gave up) is written, but parses as empty."""

        def content(leaf: Tag) -> str:
            if not leaf.field:
                return self._join(demonstration.actions)
            said = str(getattr(demonstration, leaf.field))
            if any(marker in said for marker in self._markers):  # would end the part too early
                said = said.replace("<", "(").replace(">", ")")
            return f" {said}" if self.padded else said

        return "".join(_write(tag, content) for tag in self.tags)

    def _split(self, answer: str) -> list[str]:
        return answer.split(self.separator) if self.separator.strip() else answer.split()

    def _join(self, names: Sequence[str]) -> str:
        return self.separator.join(names)

    def _read(self, text: str, spans: dict[str, tuple[int, int]]) -> None:
        """Fills `spans`; raises `FormatError` at the first thing that is not in the format."""
        end = answer_end(text, self.stop_tokens)
        at = 0
        if not self.strict:
            at = max(0, text.find(self.tags[0].start, 0, end))
        before = ""
        for tag in self.tags:
            at = self._read_tag(tag, text, at, end, before, spans)
            before = tag.stop
        if self.strict and at < end:
            raise FormatError(f"text after {before}: {quote(text[at:end].strip())}")

    def _read_tag(
        self, tag: Tag, text: str, at: int, end: int, before: str, spans: dict[str, tuple[int, int]]
    ) -> int:
        """Reads one tag that must begin at `at` (blanks aside); returns the index behind it."""
        start = self._expect(tag.start, text, at, end, before, f"no {tag.start} block")
        if tag.parts:
            at, before = start, tag.start
            for part in tag.parts:
                at = self._read_tag(part, text, at, end, before, spans)
                before = part.stop
            behind = self._expect(tag.stop, text, at, end, before, f"{tag.start} is never closed")
            spans[tag.name] = (start, behind - len(tag.stop))
            return behind
        stop = text.find(tag.stop, start, end)
        if stop < 0:
            raise FormatError(f"{tag.start} is never closed")
        for marker in self._markers:
            if text.find(marker, start, stop) >= 0:
                raise FormatError(f"{marker} stands inside {tag.start}")
        spans[tag.name] = (start, stop)
        return stop + len(tag.stop)

    def _expect(self, marker: str, text: str, at: int, end: int, before: str, missing: str) -> int:
        """The index behind `marker`, which must be the next thing but for blanks."""
        blanks = _BLANKS.match(text, at, end)
        here = blanks.end() if blanks else at
        if text.startswith(marker, here, end):
            return here + len(marker)
        found = text.find(marker, here, end)
        if found < 0:
            raise FormatError(missing)
        where = f"between {before} and {marker}" if before else f"before {marker}"
        raise FormatError(f"text {where}: {quote(text[here:found].strip())}")


def _write(tag: Tag, content: Callable[[Tag], str]) -> str:
    inner = "".join(_write(part, content) for part in tag.parts) if tag.parts else content(tag)
    return f"{tag.start}{inner}{tag.stop}"


class NoThink(Tagged):
    """`<answer>..</answer>`"""

    tags = (ANSWER,)


class FreeThink(Tagged):
    """`<think>..</think><answer>..</answer>`"""

    tags = (THINK, ANSWER)


class Grounding(Tagged):
    """Says what is seen before it reasons."""

    tags = (Tag("think", (OBSERVATION, REASONING)), ANSWER)


class WorldModeling(Tagged):
    """Reasons, then says what will be seen next."""

    tags = (Tag("think", (REASONING, PREDICTION)), ANSWER)


class GroundingWorldModeling(Tagged):
    """Says what is seen, reasons, and says what will be seen next."""

    tags = (Tag("think", (OBSERVATION, REASONING, PREDICTION)), ANSWER)
