"""From an episode so far to the chat messages of the next prompt.

The layout of a prompt, "chat" on the left and "transcript" on the right::

    system     template, instruction              system   template, instruction
    user       <image><image> text of turn 0      user     <image><image>
    assistant  the sampled answer, ids and all             previously: move_ahead | rotate_left,move_ahead
    user       <image><image> text of turn 1               text of turn 2
    assistant  the sampled answer, ids and all
    user       <image><image> text of turn 2
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from rllib_vlm.errors import ConfigErrors, RLlibVLMError
from rllib_vlm.prompts.base import ActionParser, Exchange, HistoryPolicy
from rllib_vlm.prompts.system import render_system, uses_instruction
from rllib_vlm.types import IMAGE_PLACEHOLDER, ActionSet, Image, Message

ObservationKind = Literal["vision", "text"]

INVALID = "invalid"  # stands in a transcript where an answer had no actions


class PromptTooLong(RLlibVLMError, ValueError):
    """The present turn alone, without any past, is over a limit; it is never cut."""

    def __init__(self, what: str, size: int, limit: int, hint: str) -> None:
        self.what = what
        self.size = size
        self.limit = limit
        self.hint = hint
        super().__init__(f"the present turn alone has {size} {what}, over the limit of {limit}: {hint}")

    def __reduce__(self) -> tuple[type[PromptTooLong], tuple[str, int, int, str]]:
        return type(self), (self.what, self.size, self.limit, self.hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A prompt before it becomes tokens, and what was cut from it."""

    messages: list[Message]
    dropped_turns: int = 0  # past turns the history policy or the token limit cut away
    dropped_images: int = 0  # images that kept past turns lost to `max_images`


class PromptRenderer:
    """Renders the prompts of one simulator for one answer format.

    Args:
        description: who acts, in what world (`Simulator.description`).
        actions: the simulator's actions.
        parser: the answer format; its instructions go into the system message.
        history: which past turns are kept. `layout` and `images`, if it has them, are honoured.
        max_actions: actions a turn may have.
        template: a name of `template_names()`, or the path of a file ending in ".md".
        observation: "vision" shows images and text, "text" leaves the images out.
        image_placeholder: if set, each image is replaced by this text.
        max_images: images a prompt may hold; past turns lose theirs first, oldest first and by whole turns.

    Raises:
        ConfigErrors: an argument is out of range, or the parser cannot name an action.
        UnknownNameError: no such template.
    """

    def __init__(
        self,
        description: str,
        actions: ActionSet,
        parser: ActionParser,
        history: HistoryPolicy,
        max_actions: int,
        *,
        template: str = "default",
        observation: ObservationKind = "vision",
        image_placeholder: str | None = None,
        max_images: int | None = None,
    ) -> None:
        errors = []
        if max_actions < 1:
            errors.append(f"max_actions is {max_actions}; a turn needs at least 1")
        if observation not in get_args(ObservationKind):
            errors.append(
                f"observation is {observation!r}, not one of {', '.join(get_args(ObservationKind))}"
            )
        if max_images is not None and max_images < 0:
            errors.append(f"max_images is {max_images}; give 0 or more, or nothing for no limit")
        if image_placeholder is not None and IMAGE_PLACEHOLDER in image_placeholder:
            errors.append(f"image_placeholder holds {IMAGE_PLACEHOLDER!r}, which stands for a real image")
        if errors:
            raise ConfigErrors("prompts", errors)
        self.description = description
        self.actions = actions
        self.parser = parser
        self.history = history
        self.max_actions = max_actions
        self.template = template
        self.observation = observation
        self.image_placeholder = image_placeholder
        self.max_images = max_images
        self._format = parser.instructions(actions, max_actions)
        self._transcript = getattr(history, "layout", "chat") == "transcript"
        self._recalls_observation = getattr(history, "recall", "actions") == "observation"
        self.system("")  # a broken template shows now, not in the first episode

    def system(self, instruction: str) -> str:
        """The system message's text; empty if the template has none."""
        text = render_system(
            self.template,
            description=self.description,
            actions=self.actions.names,
            max_actions=self.max_actions,
            format=self._format,
            observation=self.observation,
            instruction=instruction,
        )
        return _plain(text)

    def render(
        self, instruction: str, past: Sequence[Exchange], text: str, images: Sequence[Image]
    ) -> Rendered:
        """The prompt for the present observation (`text`, `images`) after the turns of `past`.

        Raises:
            PromptTooLong: the present observation alone has more than `max_images` images.
        """
        kept = list(self.history(past))
        return self._render(instruction, kept, text, images, len(past) - len(kept))

    @property
    def only_appends(self) -> bool:
        """Whether each prompt is the one before with `following` behind it, as far as no limit cuts it."""
        return bool(getattr(self.history, "only_grows", False)) and (
            self.observation == "text" or getattr(self.history, "images", "all") == "all"
        )

    def following(self, last: Exchange, text: str, images: Sequence[Image]) -> list[Message]:
        """The messages behind the prompt of `last`: its answer, and the present observation."""
        return [
            Message(role="assistant", text=_plain(last.answer), token_ids=last.answer_ids),
            self._user([], text, self._shown(images)),
        ]

    def fit(
        self,
        instruction: str,
        past: Sequence[Exchange],
        text: str,
        images: Sequence[Image],
        *,
        count_tokens: Callable[[Sequence[Message]], int],
        max_prompt_tokens: int,
    ) -> Rendered:
        """Like `render`, less as many of the oldest turns as it takes to fit, and no more.

        The number is found by bisection, so `count_tokens` runs O(log turns) times. The messages
        returned are the very list it was given, so it may keep what it made of them.

        Raises:
            PromptTooLong: the present turn alone does not fit; turns are never cut inside.
        """
        kept = list(self.history(past))
        tried: dict[int, Rendered] = {}

        def tokens(drop: int) -> int:
            tried[drop] = self._render(instruction, kept[drop:], text, images, len(past) - len(kept) + drop)
            return count_tokens(tried[drop].messages)

        if tokens(0) <= max_prompt_tokens:
            return tried[0]
        if not kept or (alone := tokens(len(kept))) > max_prompt_tokens:
            raise PromptTooLong(
                "tokens",
                alone if kept else count_tokens(tried[0].messages),
                max_prompt_tokens,
                "raise max_prompt_tokens, take a shorter template or smaller images",
            )
        drop = bisect.bisect_left(range(1, len(kept)), True, key=lambda d: tokens(d) <= max_prompt_tokens)
        return tried[drop + 1]

    def _render(
        self, instruction: str, kept: list[Exchange], text: str, images: Sequence[Image], dropped: int
    ) -> Rendered:
        present = self._shown(images)
        kept, dropped_images = self._limit_images(kept, len(present))
        lead = "" if uses_instruction(self.template) else _plain(instruction)
        messages: list[Message] = []
        if system := self.system(instruction):
            messages.append(Message(role="system", text=system))
        if self._transcript:
            views = [image for exchange in kept for image in self._shown(exchange.images)]
            said = " | ".join(self._summary(exchange.answer) for exchange in kept)
            lines = [lead, f"previously: {said}" if said else ""]
            messages.append(self._user(lines, text, present, views))
        else:
            for exchange in kept:
                messages.append(self._user([lead], exchange.text, self._shown(exchange.images)))
                messages.append(
                    Message(role="assistant", text=_plain(exchange.answer), token_ids=exchange.answer_ids)
                )
                lead = ""
            messages.append(self._user([lead], text, present))
        return Rendered(messages=messages, dropped_turns=dropped, dropped_images=dropped_images)

    def _shown(self, images: Sequence[Image]) -> tuple[Image, ...]:
        return () if self.observation == "text" else tuple(images)

    def _limit_images(self, kept: list[Exchange], present: int) -> tuple[list[Exchange], int]:
        """Takes the images from the oldest turns until at most `max_images` are left."""
        if self.max_images is None or self.image_placeholder is not None:
            return kept, 0
        if present > self.max_images:
            raise PromptTooLong("images", present, self.max_images, "raise max_images or use fewer cameras")
        room = self.max_images - present
        limited, dropped, full = [], 0, False
        for exchange in reversed(kept):
            count = len(self._shown(exchange.images))
            full = full or count > room  # once one turn lost its images, older ones do too
            if full:
                dropped += count
                exchange = replace(exchange, images=())
            else:
                room -= count
            limited.append(exchange)
        return limited[::-1], dropped

    def _summary(self, answer: str) -> str:
        """A past answer in a transcript: the actions it led to, and what it says was seen where that is kept."""
        parsed = self.parser(answer, self.actions, self.max_actions)
        if not parsed.valid:
            return INVALID
        start, stop = parsed.spans.get("observation", (0, 0))
        seen = answer[start:stop].strip() if self._recalls_observation else ""
        actions = ",".join(parsed.actions)
        return f"{seen}: {actions}" if seen else actions

    def _user(
        self,
        lines: Sequence[str],
        text: str,
        images: tuple[Image, ...],
        earlier: Sequence[Image] = (),
    ) -> Message:
        """A user message: images, then `lines`, then `text`; blank ones leave no empty line.

        A simulator may place its own images by putting `<image>` into its text; otherwise they
        stand first. No other `<image>` survives, or text and images would no longer agree.
        """
        if not images or text.count(IMAGE_PLACEHOLDER) != len(images):
            text = _plain(text)
            earlier = (*earlier, *images)
        head = IMAGE_PLACEHOLDER * len(earlier)
        if not (images and IMAGE_PLACEHOLDER in text):
            images = ()
        parts = [head, *lines, text]
        if self.image_placeholder is not None:
            parts = [_plain(part.replace(IMAGE_PLACEHOLDER, self.image_placeholder)) for part in parts]
            earlier = images = ()
        body = "\n".join(part for part in parts if part)
        return Message(role="user", text=body, images=(*earlier, *images))


def _plain(text: str) -> str:
    """`text` without image placeholders: a model's or a task's words never stand for an image."""
    while IMAGE_PLACEHOLDER in text:  # removing one may join the halves of another
        text = text.replace(IMAGE_PLACEHOLDER, "")
    return text
