"""GeneralPoints: make 24 from four cards."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rllib_vlm.errors import ConfigErrors, SimulatorError, did_you_mean
from rllib_vlm.sims.base import Info, Observation, Simulator
from rllib_vlm.sims.cards.deck import CARDS, SPLITS, Deal, FaceRule, FaceRules, Suits, draw
from rllib_vlm.sims.cards.drawing import draw_table
from rllib_vlm.sims.cards.grading import NO_SOLUTION, Grade, grade, read, read_as_original
from rllib_vlm.sims.cards.solver import solutions
from rllib_vlm.types import ActionSet, Demonstration

Mode = Literal["fixed", "parity"]
ObservationKind = Literal["vision", "text", "text_suits", "both"]
Step = tuple[Observation, float, bool, bool, Info]

_RULES: dict[FaceRule, str] = {
    "ten": "J, Q and K each count as 10",
    "rank": "J counts as 11, Q as 12 and K as 13",
}
_TARGETS = (1, 1000)
_CARDS = {3: "three", 4: "four"}
_EXAMPLES = {
    3: ActionSet(fields={"cards": ["4", "8", "A"], "number": [4, 8, 1], "formula": "(4-1)*8=24"}),
    4: ActionSet(fields={"cards": ["2", "8", "3", "A"], "number": [2, 8, 3, 1], "formula": "(2-1)*3*8=24"}),
}
_SIZES = (24, 2048)  # pixels
_LONGEST_TEXT = 1000


class Cards(Simulator):
    """Four cards (or three) lie on a table; the answer is a formula that makes 24 of them.

    The GeneralPoints task of Chu et al. (arXiv 2501.17161), with pictures of our own: docs/cards.md has the rules,
    rewards and what `mode` changes.

    ## Actions
    Free text: a JSON object with `cards` (what is seen), `number` (what that counts as) and `formula`, in which each
    number stands once, with + - * / and brackets, and "=24" if one likes.

    ## Observation
    `images`: the table `[1, image_size, image_size, 3]` (with `observation="vision"` or `"both"`). `text`: the cards by
    name (not with `"vision"`; with `"text_suits"` also their suits: `cards: A spades 10 clubs`), then why the last try
    failed and how many are left.

    ## Reward
    5 for a solution, 1 for one that is not finished, -1 for a formula that makes something else, -1.5 for wrong cards
    (where they are seen, and before anything else), -2 for numbers that are foreign, used too often or not at all, -3
    for each sign of the formula that cannot stand where it does and for an answer without one. The last two add up.

    ## End of an episode
    Terminated with a solution, or after `tries` answers without one. With `mode="parity"` as in the original: one more
    answer earns -1 unread, and truncates. `info` then has `success`; it always holds `metrics`: `tries`, `cards_right`
    and `numbers_right` (of the last answer), and `solved_at_once`; and `grades`: what became of the answer. `state`,
    for baselines: `tries_left` (share).

    ## Options of `reset`
    `split`: "train", "heldout", "rule_ood" (the other rule for face cards) or "visual_ood" (the other colour); training
    shares no set of numbers with the others. `deal`: the cards by name, such as ["A", "5", "K", "10"].

    ## Expert
    The shortest formula that makes the target.

    Args:
        mode: "fixed" or "parity".
        observation: "vision", "text", "text_suits" or "both".
        face_cards: what J, Q and K count as: "ten", their "rank" (11, 12, 13), or "mixed": either, drawn for each deal.
        suits: "black", "red" or "mixed".
        target: the number to make.
        cards: how many are dealt, 4 or 3; parity knows 4.
        tries: answers that are graded.
        image_size: pixels.
        render_mode: None or "rgb_array".

    Raises:
        ConfigErrors: an argument is out of range.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 1}
    actions: ClassVar[ActionSet] = _EXAMPLES[CARDS]
    reset_options: ClassVar[tuple[str, ...]] = ("split", "deal")
    splits: ClassVar[tuple[str, ...]] = SPLITS
    description: ClassVar[str] = (
        "You solve card puzzles. Cards lie on the table. Say which cards you see, which numbers they count as, "
        "and a formula of these numbers that makes the target, with each number used exactly once. "
        "A formula has numbers, + - * / and brackets. A wrong answer is explained, and you may try again."
    )

    def __init__(
        self,
        *,
        mode: Mode = "fixed",
        observation: ObservationKind = "vision",
        face_cards: FaceRules = "ten",
        suits: Suits = "black",
        target: int = 24,
        cards: int = CARDS,
        tries: int = 5,
        image_size: int = 112,
        render_mode: str | None = None,
    ) -> None:
        errors = [
            f"{name} is {value!r}.{did_you_mean(str(value), known)} Known: {', '.join(known)}"
            for name, value, known in (
                ("mode", mode, get_args(Mode)),
                ("observation", observation, get_args(ObservationKind)),
                ("face_cards", face_cards, get_args(FaceRules)),
                ("suits", suits, get_args(Suits)),
                ("render_mode", render_mode, ("rgb_array",)),
            )
            if value not in known and not (name == "render_mode" and value is None)
        ]
        errors += [
            f"{name} is {value!r}, not a whole number from {low} to {high}"
            for name, value, (low, high) in (
                ("target", target, _TARGETS),
                ("cards", cards, (min(_CARDS), max(_CARDS))),
                ("tries", tries, (1, 100)),
                ("image_size", image_size, _SIZES),
            )
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high
        ]
        if mode == "parity" and cards == min(_CARDS):
            errors.append(f"cards is {cards}, and mode 'parity' grades {CARDS}; take mode 'fixed'")
        if errors:
            raise ConfigErrors("Cards", errors)
        self.mode = mode
        self.face_cards = face_cards
        self.suits = suits
        self.target = target
        self.cards = cards
        self.actions = _EXAMPLES[cards]  # type: ignore[misc]
        self.tries = tries
        self.image_size = image_size
        self.render_mode = render_mode
        self.shows_text = observation != "vision"
        self.shows_image = observation in ("vision", "both")
        self.tells_suits = observation == "text_suits"
        spaces: dict[str, gym.Space[Any]] = {
            "text": gym.spaces.Text(min_length=0, max_length=_LONGEST_TEXT, charset=string.printable)
        }
        if self.shows_image:
            spaces["images"] = gym.spaces.Box(0, 255, (1, image_size, image_size, 3), np.uint8)
        self.observation_space = gym.spaces.Dict(spaces)  # type: ignore[assignment]
        self.action_space = gym.spaces.Text(min_length=0, max_length=_LONGEST_TEXT, charset=string.printable)
        self.deal: Deal | None = None
        self.over = True

    @classmethod
    def check_config(cls, config: Mapping[str, Any]) -> None:
        """Nothing more than the constructor does.

        Raises:
            ConfigErrors: with everything that is wrong with the arguments.
        """
        cls(**config)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """See the class.

        Raises:
            SimulatorError: an option has a value it cannot have.
            UnknownNameError: there is no such option.
        """
        super().reset(seed=seed)
        options = self.known_options(options)
        split = options.get("split", "train")
        if split not in SPLITS:
            raise SimulatorError(f"the option split is {split!r}, not one of {', '.join(SPLITS)}")
        self.deal = draw(
            self.np_random,
            split=split,
            rule=self.face_cards,
            suits=self.suits,
            target=self.target,
            cards=self.cards,
            names=options.get("deal"),
        )
        self._picture = draw_table(self.deal.cards, self.image_size) if self.shows_image else None
        self._left = self.tries
        self._last: Grade | None = None
        self.over = False
        instruction = (
            f"Make {self.target} of the {_CARDS[self.cards]} cards, each used once. A counts as 1. "
            f"{_RULES[self.deal.rule]}."
        )
        return self._observe(""), {"instruction": instruction, "state": self._state()}

    def step(self, action: str) -> Step:
        """One try.

        Raises:
            SimulatorError: the episode has not begun, or with `mode="fixed"` it is over.
        """
        if self.deal is None or (self.over and self.mode == "fixed"):
            raise SimulatorError("the episode is over or has not begun: call reset() first")
        parity = self.mode == "parity"
        self._left -= 1
        if self._left == -1 and parity:
            self.over = True
            info = self._info("exceeded", correct=False, success=False)
            return self._observe("no try is left"), NO_SOLUTION, False, True, info
        answer = read_as_original(action) if parity else read(action)
        grading = grade(answer, self.deal, self.target, vision=self.shows_image, parity=parity)
        self._last = grading
        self.over = grading.correct or (self._left == 0 and not parity)
        feedback = "" if grading.correct else "; ".join(grading.messages)
        success = grading.correct if self.over else None
        info = self._info(grading.verdict, correct=grading.correct, success=success)
        return self._observe(feedback), grading.reward, self.over, False, info

    def idle(self) -> Step:
        """A try without an answer."""
        return self.step("")

    def expert(self, *, max_actions: int = 1) -> CardsExpert:
        """An expert for this episode; see the class."""
        return CardsExpert(self)

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """The table `[image_size, image_size, 3]`, or None without a render mode."""
        if self.render_mode != "rgb_array" or self.deal is None:
            return None
        return draw_table(self.deal.cards, self.image_size)

    def solution(self) -> str:
        """The shortest formula that makes the target."""
        assert self.deal is not None
        return solutions(tuple(sorted(self.deal.numbers)), self.target)[0]

    def _observe(self, feedback: str) -> Observation:
        assert self.deal is not None
        told = [f"{card.name} {card.suit}" if self.tells_suits else card.name for card in self.deal.cards]
        lines = [f"cards: {' '.join(told)}"] if self.shows_text else []
        if feedback:
            lines += [f"wrong: {feedback[: _LONGEST_TEXT // 2]}", f"tries left: {max(self._left, 0)}"]
        observation: Observation = {"text": "\n".join(lines)}
        if self._picture is not None:
            observation["images"] = self._picture[None]
        return observation

    def _state(self) -> dict[str, float]:
        return {"tries_left": max(self._left, 0) / self.tries}

    def _info(self, verdict: str, *, correct: bool, success: bool | None) -> Info:
        last = self._last
        used = min(self.tries - self._left, self.tries)
        info: Info = {
            "metrics": {
                "tries": float(used),
                "cards_right": float(last is not None and last.cards_right),
                "numbers_right": float(last is not None and last.numbers_right),
                "solved_at_once": float(bool(success) and used == 1),
            },
            "grades": [{"attempt": self.tries - self._left, "correct": correct, "verdict": verdict}],
            "state": self._state(),
        }
        if success is not None:
            info["success"] = success
        return info


class CardsExpert:
    """Knows a solution; gives up when the episode is over."""

    def __init__(self, simulator: Cards) -> None:
        self._simulator = simulator

    def __call__(self) -> Demonstration:
        simulator, deal = self._simulator, self._simulator.deal
        if simulator.over or deal is None:
            return Demonstration(actions=())
        names, numbers = " ".join(deal.names), ", ".join(map(str, deal.numbers))
        return Demonstration(
            actions=(self._answer(deal),),
            observation=f"The cards are {names}.",
            reasoning=f"They count as {numbers}.",
        )

    def _answer(self, deal: Deal) -> str:
        formula = f"{self._simulator.solution()}={self._simulator.target}"
        if self._simulator.mode == "fixed":
            return json.dumps({"cards": list(deal.names), "number": list(deal.numbers), "formula": formula})
        # What the original takes for right in a picture too: no valid JSON, single quotes around cards.
        cards = ", ".join(f"'{name}'" for name in deal.names)
        numbers = ", ".join(map(str, deal.numbers))
        return f'{{\n  "cards": [{cards}],\n  "number": [{numbers}],\n  "formula": "{formula}",\n}}'
