"""Cards, what they count as, and which deals belong to which split."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from rllib_vlm.errors import SimulatorError
from rllib_vlm.sims.cards.solver import is_solvable

FaceRule = Literal["ten", "rank"]
FaceRules = Literal["ten", "rank", "mixed"]
Suits = Literal["black", "red", "mixed"]
Split = Literal["train", "heldout", "rule_ood", "visual_ood"]
SPLITS: tuple[Split, ...] = get_args(Split)

CARDS = 4  # of a deal in the original
JACK, KING = 11, 13
NAMES = ("A", "2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K")  # of ranks 1 to 13
SUITS: dict[Suits, tuple[str, ...]] = {
    "black": ("spades", "clubs"),
    "red": ("hearts", "diamonds"),
    "mixed": ("spades", "clubs", "hearts", "diamonds"),
}
_RULES: tuple[FaceRule, ...] = get_args(FaceRule)
_OTHER_RULE: dict[FaceRule, FaceRule] = {"ten": "rank", "rank": "ten"}
_OTHER_SUITS: dict[Suits, Suits] = {"black": "red", "red": "black"}
_HELDOUT_SHARE = 5  # one set of numbers in this many is held out
_TRIES = 10_000


@dataclass(frozen=True, slots=True)
class Card:
    """One card."""

    rank: int  # 1 (ace) to 13 (king)
    suit: str

    @property
    def name(self) -> str:
        return NAMES[self.rank - 1]


@dataclass(frozen=True, slots=True)
class Deal:
    """A few cards, and what face cards count as."""

    cards: tuple[Card, ...]
    rule: FaceRule

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(card.name for card in self.cards)

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(count(card.rank, self.rule) for card in self.cards)


def count(rank: int, rule: FaceRule) -> int:
    """What a card counts as."""
    return min(rank, 10) if rule == "ten" else rank


def is_heldout(ranks: Sequence[int]) -> bool:
    """Whether these cards, in any order, are kept out of training.

    It goes by the numbers with face cards as ten: a ten in place of a king is no new task.
    """
    numbers = bytes(sorted(count(rank, "ten") for rank in ranks))
    return zlib.crc32(numbers) % _HELDOUT_SHARE == 0


def draw(
    rng: np.random.Generator,
    *,
    split: Split,
    rule: FaceRules,
    suits: Suits,
    target: int,
    cards: int = CARDS,
    names: Sequence[str] | None = None,
) -> Deal:
    """A solvable deal of a split.

    "train" and "heldout" share no set of numbers. "rule_ood" has the other rule for face cards and at least
    one of them, "visual_ood" the other colour; both are made of held-out numbers too.

    Args:
        rng: source of everything random.
        split: see above.
        rule: what face cards count as in training; "mixed" draws a rule for each deal.
        suits: colour of the cards in training.
        target: the number to make.
        cards: how many are dealt.
        names: the cards to deal, by name, in place of drawn ones, whatever split they belong to.

    Raises:
        SimulatorError: there is no such card, no other rule or no other colour, or the cards given have no solution.
    """
    said = _rule(rng, split, rule)
    if split == "visual_ood":
        if suits not in _OTHER_SUITS:
            raise SimulatorError(f"the split visual_ood shows the other colour, and suits {suits!r} has none")
        suits = _OTHER_SUITS[suits]
    if names is not None:
        ranks = _ranks(names, cards)
        if not is_solvable(tuple(sorted(count(rank, said) for rank in ranks)), target):
            raise SimulatorError(f"no formula makes {target} of the cards {', '.join(names)}")
    else:
        ranks = _draw_ranks(rng, split, said, target, cards)
    drawn = [SUITS[suits][int(k)] for k in rng.integers(len(SUITS[suits]), size=cards)]
    return Deal(tuple(Card(rank, suit) for rank, suit in zip(ranks, drawn, strict=True)), said)


def _rule(rng: np.random.Generator, split: Split, rule: FaceRules) -> FaceRule:
    """What face cards count as in a deal of this split."""
    if rule == "mixed":
        if split == "rule_ood":
            raise SimulatorError("the split rule_ood has the other rule, and face_cards 'mixed' has none")
        return _RULES[int(rng.integers(len(_RULES)))]
    return _OTHER_RULE[rule] if split == "rule_ood" else rule


def _draw_ranks(rng: np.random.Generator, split: Split, rule: FaceRule, target: int, cards: int) -> list[int]:
    for _ in range(_TRIES):
        ranks = [int(rank) for rank in rng.integers(1, KING + 1, size=cards)]
        if split == "rule_ood" and max(ranks) < JACK:
            ranks[int(rng.integers(cards))] = int(rng.integers(JACK, KING + 1))
        if is_heldout(ranks) == (split == "train"):
            continue
        if is_solvable(tuple(sorted(count(rank, rule) for rank in ranks)), target):
            return ranks
    raise SimulatorError(
        f"no deal of the split {split} in {_TRIES} tries makes {target}; choose another target"
    )


def _ranks(names: Sequence[str], cards: int) -> list[int]:
    wrong = [name for name in names if name not in NAMES]
    if wrong or len(names) != cards:
        raise SimulatorError(
            f"the option deal is {list(names)!r}; it must be {cards} of {', '.join(NAMES)} as texts"
        )
    return [NAMES.index(name) + 1 for name in names]
