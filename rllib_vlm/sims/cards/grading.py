"""How answers are read and graded.

Rewards and their order are those of GeneralPoints (LeslieTrue/SFTvsRL at 5a6ea55: utils_rl.py for grading,
utils_general.py for reading; arXiv 2501.17161). `parity` reads and grades as it does, `fixed` corrects what
docs/cards.md lists; the words of the feedback are ours in both.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rllib_vlm.json_object import JSONObjectError, read_object
from rllib_vlm.sims.cards.deck import CARDS, Deal
from rllib_vlm.sims.cards.solver import bracketed_solutions, evaluate

CORRECT = 5.0
PARTIAL = 1.0
NO_SOLUTION = -1.0  # also of a call after the last try, in parity
WRONG_CARDS = -1.5
WRONG_NUMBERS = -2.0
ILLEGAL = -3.0

_VERDICTS = {
    CORRECT: "correct_solution",
    PARTIAL: "partial_solution",
    NO_SOLUTION: "no_solution",
    WRONG_CARDS: "wrong_cards",
    WRONG_NUMBERS: "wrong_numbers",
    ILLEGAL: "illegal_formula",
    0.0: "rounded_solution",  # in parity: a solution that floats do not see
}

_TOKEN = re.compile(r"\d+|[+\-*/()]")
_LISTED = {key: re.compile(rf'"{key}": \[([^\]]+)\]') for key in ("cards", "number")}
_FORMULA = re.compile(r'"formula": "(.*?)"')
_MOST_NAMED = 4  # numbers that a message names


@dataclass(frozen=True, slots=True)
class Answer:
    """What was understood of an answer."""

    cards: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    formula: str | None = None  # None: there is none
    claim: str | None = None  # what stands behind the formula's "="


@dataclass(frozen=True, slots=True)
class Grade:
    """What an answer earned."""

    reward: float
    messages: tuple[str, ...]
    cards_right: bool  # whether the cards were recognised, graded or not
    numbers_right: bool  # whether what they count as was; never graded

    @property
    def correct(self) -> bool:
        return self.reward == CORRECT

    @property
    def verdict(self) -> str:
        """A word for it; faults that add up have one of their own."""
        return _VERDICTS.get(self.reward, "several_faults")


def read(text: str) -> Answer:
    """What a JSON object says; trailing commas and blanks in the formula are forgiven."""
    try:
        members = read_object(text, strict=False)
    except JSONObjectError:
        return Answer()
    formula = members["formula"].value if "formula" in members else None
    if not isinstance(formula, str):
        formula = None
    said, equals, claim = (formula or "").partition("=")
    listed = {key: members[key].value if key in members else None for key in _LISTED}
    cards, numbers = (
        tuple(str(item).strip() for item in value) if isinstance(value, list) else ()
        for value in listed.values()
    )
    return Answer(
        tuple(card.upper() for card in cards),
        numbers,
        None if formula is None else "".join(said.split()),
        claim.strip() if equals else None,
    )


def read_as_original(text: str) -> Answer:
    """What the original understands of a text.

    A member of valid JSON is taken as it is, and a list of cards then counts as none: only texts are split.
    Otherwise the first `"cards": [..]` is split at commas, if not all of it is whole numbers.
    """
    formula = _member(text, "formula")
    if isinstance(formula, str):
        formula = formula.split("=")[0]
    return Answer(
        _split(_member(text, "cards")),
        _split(_member(text, "number")),
        formula if isinstance(formula, str) else None,  # the original stops with an error here
    )


def _member(text: str, key: str) -> Any:
    try:
        return json.loads(text)[key]
    except (ValueError, KeyError, TypeError, RecursionError):
        found = (_FORMULA if key == "formula" else _LISTED[key]).search(text)
    if found is None:
        return "None"
    if key == "cards" and all(re.fullmatch(r"\s*[+-]?\d+\s*", item) for item in found[1].split(", ")):
        return []  # a list of whole numbers, which is no text to split
    return found[1]


def _split(listed: Any) -> tuple[str, ...]:
    if not isinstance(listed, str):
        return ()
    items = re.sub(r"[\[\]' ]", "", listed).split(",")
    return tuple(items) if len(items) == CARDS else ()


def grade(answer: Answer, deal: Deal, target: int, *, vision: bool, parity: bool) -> Grade:
    """What an answer to a deal earns.

    Args:
        answer: as `read` or `read_as_original` understood it, the latter with `parity`.
        deal: the cards.
        target: the number to make.
        vision: whether the cards had to be recognised in a picture.
        parity: whether formulas are judged as the original judges them.
    """
    cards_right = Counter(answer.cards) == Counter(deal.names)
    numbers_right = Counter(answer.numbers) == Counter(map(str, deal.numbers))

    def earned(reward: float, *messages: str) -> Grade:
        return Grade(reward, messages, cards_right, numbers_right)

    if answer.formula is None and not parity:
        return earned(ILLEGAL, "the answer has no formula")
    if vision and not cards_right:
        return earned(WRONG_CARDS, "these are not the cards")
    formula = answer.formula or ""
    tokens = _TOKEN.findall(formula)
    if answer.formula is None or "".join(tokens) != formula:
        return earned(ILLEGAL, "the formula has other signs than numbers, + - * / and brackets")
    faults = [*_order(tokens), *_use(tokens, deal.numbers)]
    if faults:
        return earned(sum(reward for reward, _ in faults), *(message for _, message in faults))
    judge = _judge_as_original if parity else _judge
    return earned(*judge(answer, tokens, deal, target))


Fault = tuple[float, str]


def _order(tokens: Sequence[str]) -> list[Fault]:
    """One fault for every sign that cannot follow the one before it."""
    faults: list[Fault] = []
    before, depth = "", 0
    for token in tokens:
        after_value = before == "number" or before == ")"
        kind = "number" if token[0].isdigit() else token if token in "()" else "operator"
        if kind in ("number", "("):
            fits = not after_value
        else:
            fits = after_value and (kind != ")" or depth > 0)
        if not fits:
            faults.append((ILLEGAL, f"{token[:9]} cannot stand {f'after {before}' if before else 'first'}"))
        elif kind in "()":
            depth += 1 if kind == "(" else -1
        before = kind
    return faults


def _use(tokens: Sequence[str], numbers: Sequence[int]) -> list[Fault]:
    """Faults in which numbers are used how often."""
    # Nine digits tell any number from those of cards; Python refuses to read some thousands of them.
    used = Counter(int(t.lstrip("0")[:9] or "0") for t in tokens if t[0].isdigit())
    given = Counter(numbers)
    faults: list[Fault] = []
    if foreign := [n for n in used if n not in given]:
        faults.append((WRONG_NUMBERS, f"no card counts as {_list(foreign)}"))
    elif often := [n for n in used if used[n] > given[n]]:
        faults.append((WRONG_NUMBERS, f"you used {_list(often)} too often"))
    if missing := [n for n in given if given[n] > used[n]]:
        faults.append((WRONG_NUMBERS, f"you did not use {_list(missing)}"))
    return faults


def _list(numbers: Sequence[int]) -> str:
    more = ", ..." if len(numbers) > _MOST_NAMED else ""
    return ", ".join(map(str, numbers[:_MOST_NAMED])) + more


def _judge(answer: Answer, tokens: Sequence[str], deal: Deal, target: int) -> Fault:
    """Of a formula in which every number is used once: exact, and only a formula's own claim counts."""
    formula = "".join(tokens)
    value: Fraction | None = evaluate(formula)
    if value is None:
        missing = tokens.count("(") - tokens.count(")")
        if evaluate(formula + ")" * missing) == target:
            return PARTIAL, "a bracket is never closed"
        return NO_SOLUTION, "the formula is not complete or divides by 0"
    if value != target:
        return NO_SOLUTION, f"your formula makes {value}, not {target}"
    if answer.claim is not None and answer.claim != str(target):
        return NO_SOLUTION, f"your formula makes {target}, and you say it makes something else"
    return CORRECT, "correct"


def _judge_as_original(answer: Answer, tokens: Sequence[str], deal: Deal, target: int) -> Fault:
    """Floats decide, then whether the formula begins like a solution that the original knows."""
    formula = "".join(tokens)
    value = evaluate(formula, int)
    if value == target:
        return CORRECT, "correct"
    known = bracketed_solutions(tuple(sorted(deal.numbers)), target)
    if value is None and any(each.startswith(formula) for each in known):
        return PARTIAL, "so far this is right"
    begun = ""
    for token in tokens:
        if not any(each.startswith(begun + token) for each in known):
            return NO_SOLUTION, f"only {begun or 'nothing of it'} is the beginning of a solution"
        begun += token
    return 0.0, "this is a solution, and rounding hides it"
