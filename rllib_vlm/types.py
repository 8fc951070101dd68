"""The dataclasses of the pipe, in the order data flows through them.

Legend: P = tokens of a prompt (image placeholders already expanded), T = tokens of one completion,
N = turns of an episode, H x W = pixels of an image.

A household episode of two turns, from top to bottom of this file::

    Message(role="user", text="<image><image>\\nfetch the red mug", images=(nav, manip))
    Prompt(token_ids=[1, 40, 9, 9, 9, 9, 52, ...], images=(nav, manip), text="...")
    Completion(token_ids=[61, 77, 62, 2], logprobs=[-0.1, -1.2, -0.0, -0.0], policy_version=3, ...)
    ParsedAction(valid=True, actions=("move_ahead", "rotate_right"), ...)
    Turn(prompt, completion, parsed, reward=0.62, ...)
    Trajectory(turns=(turn_0, turn_1), group="train/17", terminated=True, ...)
    TokenCredit(advantages=[0.8, 0.8, 0.8, 0.8], returns=[...])     one per turn
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "abort"]
Image = NDArray[np.uint8]  # [H, W, 3] RGB

IMAGE_PLACEHOLDER = "<image>"


@dataclass(frozen=True, slots=True)
class ActionSet:
    """The actions a simulator understands: by the names the model is shown, or free text with the fields it reads.

    Example::

        ActionSet(names=("move_ahead", "done"), aliases={"moveahead": "move_ahead"})
        ActionSet(fields={"plan": "go to the table, then look", "speed": 3})

    With `fields` an action is a text, and each turn has one: a JSON object with these members. Their values here
    are examples, which the model is shown. The last member is the decision; those before it lead there.
    """

    names: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.names) == bool(self.fields):
            raise ValueError(
                f"an ActionSet has either names or fields: {self.names!r}, {dict(self.fields)!r}"
            )

    @property
    def is_text(self) -> bool:
        """Whether an action is a text rather than a name."""
        return bool(self.fields)

    def __contains__(self, name: object) -> bool:
        return self.resolve(str(name)) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def resolve(self, name: str) -> str | None:
        """The canonical name for `name` (case and surrounding blanks ignored), or None. A text is its own."""
        if self.fields:
            return name
        key = name.strip().lower()
        if key in self.names:
            return key
        return self.aliases.get(key)

    def index(self, name: str) -> int:
        """Position of a canonical name, the action's number in a `Discrete` space."""
        return self.names.index(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One chat message. `text` holds one `<image>` per entry of `images`, in order.

    An assistant message that the model itself sampled carries the sampled ids, which stand in the
    prompt as they are: tokenising the text again may give other ids, and other log-probs.
    """

    role: Role
    text: str
    images: tuple[Image, ...] = ()
    token_ids: NDArray[np.int64] | None = None  # [T] exact ids of an earlier completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the model reads before it answers."""

    token_ids: NDArray[np.int64]  # [P], one placeholder id per image token (already expanded)
    images: tuple[Image, ...] = ()  # already at the model's final size
    text: str = ""  # readable form, for galleries and logs only; never tokenised again
    dropped_turns: int = 0  # turns the history policy or the token limit cut away
    # [6, P] what is said about each image token, -1 where nothing is: first and last token of the name of what it
    # shows; the first three tokens of where that is; 1 where the instruction names it, else 0. Of a thing told of
    # in words, its name's last token has the sixth alone. In demonstrations alone.
    shown: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What the model answered: exactly the sampled tokens, never text made into tokens again."""

    token_ids: NDArray[np.int64]  # [T]
    logprobs: NDArray[np.float32]  # [T] nats, of the distribution that sampled (temperature, top-p, bans)
    policy_version: int  # the weights' sequence number at decode time
    finish_reason: FinishReason
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedAction:
    """What a parser made of a completion's text. Invalid answers carry the reason and no actions.

    `spans` maps a part of the answer ("think", "answer", "observation", ...) to its character
    range in the text, so that masks by part never depend on token ids.
    """

    valid: bool
    actions: tuple[str, ...] = ()  # canonical names, in order, at most max_actions
    reason: str = ""  # why the answer is invalid, or what was cut
    dropped_actions: int = 0  # actions beyond max_actions
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """An answer as its words, for simulators that grade more of it than its actions."""

    text: str  # without stop tokens and blanks at its end
    parts: Mapping[str, str] = field(default_factory=dict)  # by the names of `ParsedAction.spans`


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """What one image shows in one place."""

    image: int  # position among the observation's images
    x: float  # of its centre, 0 (left) to 1
    y: float  # 0 (top) to 1
    words: str  # "red mug": attribute first, kind last
    place: str = ""  # where it is, as an answer would say it: "left 12 8"
    named: bool = False  # whether the instruction speaks of it
    pixels: float = 0.0  # of the image that show it, roughly; 0 is not known


@dataclass(frozen=True, slots=True, kw_only=True)
class Mention:
    """A thing of which the observation's text tells."""

    words: str  # as they stand there: "red mug"
    named: bool  # whether the instruction speaks of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """One turn of an expert: the actions, and what an answer format may want said about them."""

    actions: tuple[str, ...]
    observation: str = ""  # what is seen, for the grounding formats
    reasoning: str = ""  # why these actions
    prediction: str = ""  # what will be seen next, for the world-modeling formats
    # About the same views, (question, answer). For imitation alone: nobody asks when a policy acts.
    questions: tuple[tuple[str, str], ...] = ()
    detections: tuple[Detection, ...] = ()  # what the images show; where two share a place, the first counts
    mentions: tuple[Mention, ...] = ()  # what the observation's text tells of, in its order


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One observation, one completion, what became of it."""

    prompt: Prompt
    completion: Completion
    parsed: ParsedAction
    reward: float  # of this turn, format and shaping terms included
    anchor: str = ""  # the same for turns that began in the same state; "" is not known
    state: Mapping[str, float] = field(default_factory=dict)  # what the simulator tells of that state
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """A whole episode. Siblings of a group started from the same task and seed."""

    turns: tuple[Turn, ...]
    group: str
    terminated: bool
    truncated: bool
    success: bool
    values: tuple[NDArray[np.float32], ...] = ()  # per turn [T], filled by the learner's critic
    # Per turn [T], beside the turns' own rewards; filled where a KL stands in the reward.
    token_rewards: tuple[NDArray[np.float32], ...] = ()
    bootstrap_value: float = 0.0  # value after the last turn; 0 where the episode terminated

    @property
    def turn_rewards(self) -> list[float]:
        """[N], each turn's own reward and those of its tokens."""
        if not self.token_rewards:
            return [float(turn.reward) for turn in self.turns]
        return [
            float(turn.reward) + float(np.sum(own, dtype=np.float64))
            for turn, own in zip(self.turns, self.token_rewards, strict=True)
        ]

    @property
    def total_reward(self) -> float:
        return float(sum(self.turn_rewards))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCredit:
    """Credit of one turn's tokens."""

    advantages: NDArray[np.float32]  # [T]
    returns: NDArray[np.float32]  # [T] regression target of the critic; zeros where there is none
    value_mask: NDArray[np.bool_] | None = None  # [T] tokens whose return is a target; None is all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How completions are sampled. `temperature=0` is greedy (log-probs are then those at temperature 1)."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 64
    stop: Sequence[str] = ()  # strings after which generation ends; the stop string stays in the completion
    seed: int | None = None
