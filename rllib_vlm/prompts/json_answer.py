"""The JSON answer formats.

`{"thoughts": "..", "actions": ["move_ahead"]}`, or the object that free text is; and V-IRL's, in which an agent first
says what it sees and which instruction is due: `{"current observation": "..", "current instruction": "..",
"action": "done"}`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rllib_vlm.json_object import JSONObject, JSONObjectError, read_object
from rllib_vlm.prompts.answer import (
    STOP_TOKENS,
    FormatError,
    answer_end,
    example_text,
    read_actions,
    read_text,
)
from rllib_vlm.types import ActionSet, Demonstration, ParsedAction

_THOUGHTS = ("thoughts", "reasoning")


class JSONAnswer:
    """Reads and writes one JSON object; further keys are allowed and ignored.

    `actions` is a list of names; `thoughts` (or `reasoning`) may be left out. Trailing commas are
    understood. Spans: "think" is the thoughts' string and "answer" the list, quotes and brackets
    included.

    Where actions are free text, the object is the action, with the members that the simulator's
    `ActionSet` asks for; the simulator gets it as it is written. Spans are then those of `read_text`.

    Args:
        strict: False forgives text around the object, such as a Markdown code fence.
        verbatim: whether free text goes to the simulator whatever it is, for one that grades broken
            answers itself. Only an empty answer is invalid then.
        stop_tokens: texts that may end an answer.
    """

    def __init__(
        self, *, strict: bool = True, verbatim: bool = False, stop_tokens: Sequence[str] = STOP_TOKENS
    ) -> None:
        self.strict = strict
        self.verbatim = verbatim
        self.stop_tokens = tuple(stop_tokens)

    def instructions(self, actions: ActionSet, max_actions: int) -> str:
        """The format in words. Its second line is itself an answer in the format."""
        if actions.is_text:
            form, rule = example_text(actions), "Fill in values of your own."
        else:
            example = actions.names[: min(2, max_actions)]
            form = self.format(Demonstration(actions=example, reasoning="why you act this way"), actions)
            many = "exactly one action" if max_actions == 1 else f"1 to {max_actions} actions"
            rule = f'"actions" lists {many}.'
        return f"Answer with one JSON object and nothing else, in this form:\n{form}\n{rule}"

    def __call__(self, text: str, actions: ActionSet, max_actions: int) -> ParsedAction:
        spans: dict[str, tuple[int, int]] = {}
        end = answer_end(text, self.stop_tokens)
        if actions.is_text:
            return read_text(text, 0, end, actions, spans, strict=self.strict, verbatim=self.verbatim)
        try:
            words = self._words(read_object(text[:end], strict=self.strict), spans)
        except (FormatError, JSONObjectError) as error:
            return ParsedAction(valid=False, reason=str(error), spans=spans)
        return read_actions(words, actions, max_actions, spans)

    def format(self, demonstration: Demonstration, actions: ActionSet) -> str:
        """The expert's answer. One without actions (it gave up) is written, but parses as empty."""
        if actions.is_text:
            return "".join(demonstration.actions)
        answer: dict[str, Any] = {}
        if demonstration.reasoning:
            answer["thoughts"] = demonstration.reasoning
        answer["actions"] = list(demonstration.actions)
        return json.dumps(answer, ensure_ascii=False)

    def _words(self, members: JSONObject, spans: dict[str, tuple[int, int]]) -> list[str]:
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


class JSONGrounding(JSONAnswer):
    """One JSON object that says what is seen, which instruction is due, and one action.

    `action` is a name, or a list of names where a turn has several. Further keys are allowed and ignored, and only
    `action` is required. Spans: "observation", "reasoning" (the instruction) and "answer", quotes included.
    """

    def instructions(self, actions: ActionSet, max_actions: int) -> str:
        """The format in words. Its second line is itself an answer in the format."""
        if actions.is_text:
            return super().instructions(actions, max_actions)
        form = self.format(
            Demonstration(
                actions=actions.names[: min(2, max_actions)],
                observation="what you see",
                reasoning="the instruction to carry out now",
            ),
            actions,
        )
        many = (
            "is exactly one action"
            if max_actions == 1
            else f"is one action, or a list of up to {max_actions}"
        )
        return f'Answer with one JSON object and nothing else, in this form:\n{form}\n"action" {many}.'

    def format(self, demonstration: Demonstration, actions: ActionSet) -> str:
        """The expert's answer. One without actions (it gave up) is written, but parses as empty."""
        if actions.is_text:
            return super().format(demonstration, actions)
        one = len(demonstration.actions) == 1
        answer = {
            "current observation": demonstration.observation,
            "current instruction": demonstration.reasoning,
            "action": demonstration.actions[0] if one else list(demonstration.actions),
        }
        return json.dumps(answer, ensure_ascii=False)

    def _words(self, members: JSONObject, spans: dict[str, tuple[int, int]]) -> list[str]:
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
