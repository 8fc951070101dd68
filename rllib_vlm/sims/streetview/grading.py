"""What an answer is worth, and what its author is told about it. Neither ever names the right action."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

from rllib_vlm.sims.streetview.rail import Node

Verdict = Literal[
    "correct_action", "incorrect_action", "incorrect_observation", "incorrect_instruction", "exceeded"
]

CORRECT: Verdict = "correct_action"

# The form of V-IRL's answers, which its feedback repeats, brackets doubled (SFTvsRL, utils_rl.py).
_FORM = """
[Output]
{{
  "current observation": latest observation from the streetview grid,
  "current instruction": analyze the full instruction and identify the sentence to be executed,
  "action": the action to be taken chosen from the action space,
}}"""


def _again(what: str, wrong: str) -> str:
    return f"{what} Please avoid this {wrong} and try again in the same format:{_FORM}."


_ORIGINAL_FEEDBACK = {
    "correct": "Correct action.",
    "not_there": _again("you are not at any intersection.", "observation"),
    "there": _again("you are at an intersection.", "observation"),
    "action": _again("you make incorrect action.", "action"),
    "exceeded": "Exceed maximum verify steps",
}
_FEEDBACK = {
    "correct": "That was right.",
    "not_there": "You are not at an intersection. Look again.",
    "there": "You are at an intersection. Look again.",
    "instruction": "That is not the sentence to carry out now.",
    "action": "That action is wrong here.",
    "unreadable": "Your answer named no action in the asked form.",
}
_WORD = "intersection"


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardWeights:
    """Rewards of one answer (SFTvsRL, REWARD_FN_VIRL). The original never gives the last one."""

    correct_action: float = 1.0
    incorrect_action: float = -1.0  # also for running out of tries in parity mode
    incorrect_observation: float = -1.5
    incorrect_instruction: float = -1.75

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Every weight's name."""
        return tuple(f.name for f in fields(cls))


@dataclass(frozen=True, slots=True)
class Grade:
    """A graded answer."""

    verdict: Verdict
    feedback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was said, field by field; None where nothing is known of it."""

    action: str | None
    observation: str | None = None
    instruction: str | None = None


def grade(answer: Answer, node: Node, *, grade_instruction: bool) -> Grade:
    """The corrected rules: what is at the place counts as true, in all of its words.

    A right action is right whatever else was said. Otherwise the first of these that is wrong is told:
    whether there is an intersection, (if it is graded) which instruction is due, the action.
    """
    if answer.action == node.action:
        return Grade(CORRECT, _FEEDBACK["correct"])
    if answer.action is None:
        return Grade("incorrect_action", _FEEDBACK["unreadable"])
    if answer.observation is not None:
        said = _WORD in answer.observation.lower()
        true = node.intersection or _WORD in node.landmark.lower()
        if said != true:
            return Grade("incorrect_observation", _FEEDBACK["not_there" if said else "there"])
    told = answer.instruction
    if grade_instruction and told is not None and _bare(told) != _bare(node.instruction):
        return Grade("incorrect_instruction", _FEEDBACK["instruction"])
    return Grade("incorrect_action", _FEEDBACK["action"])


def grade_original(text: str, node: Node) -> Grade:
    """V-IRL's rules on the model's raw text.

    The oracle's side of the comparison is the landmark alone, so at an intersection the word is punished when
    the action is wrong. Where the original raises (an observation that is no text), this is a wrong action.
    """
    action = read_field(text, "action")
    observation = read_field(text, "current observation")
    if action == node.action:
        return Grade(CORRECT, _ORIGINAL_FEEDBACK["correct"])
    true = _WORD in node.landmark
    if isinstance(observation, str | list | dict):
        said = _WORD in observation
        if said != true:
            return Grade("incorrect_observation", _ORIGINAL_FEEDBACK["not_there" if said else "there"])
    return Grade("incorrect_action", _ORIGINAL_FEEDBACK["action"])


def exceeded_original() -> Grade:
    """What V-IRL says to an answer beyond the last try, which it does not read."""
    return Grade("exceeded", _ORIGINAL_FEEDBACK["exceeded"])


def read_field(text: str, name: str) -> Any:
    """A field of an answer as V-IRL reads it: as JSON, else by a pattern with exactly one blank, else "None"."""
    try:
        return json.loads(text)[name]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        match = re.search(f'"{re.escape(name)}": "(.*?)"', text)
        return match[1] if match else "None"


def reward_weights(given: RewardWeights | Mapping[str, Any] | None) -> RewardWeights:
    """The weights, with the given ones laid over the defaults; names and values have been checked."""
    if isinstance(given, RewardWeights):
        return given
    return RewardWeights(**cast("Mapping[str, float]", given or {}))


def _bare(sentence: str) -> str:
    """A sentence without its number, quotes and differences of blanks or case."""
    return " ".join(re.sub(r'^[\s"]*\d+\.', "", sentence.strip().strip('"')).lower().split()).rstrip(". ")
