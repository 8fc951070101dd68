"""What an expert's turn teaches: its answer in the policy's tokens, and what its pictures show beside that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from rllib_vlm.models.base import VLMFamily
from rllib_vlm.types import Completion, Demonstration, ParsedAction, Prompt, Turn


class Teacher:
    """Puts demonstrations into words the policy could have said.

    Args:
        family: of the policy.
        format: a demonstration in the words of the answer format.
        version: of the weights, which completions carry.
    """

    def __init__(
        self, family: VLMFamily, format: Callable[[Demonstration], str], version: Callable[[], int]
    ) -> None:
        self._family = family
        self._format = format
        self._version = version

    def say(self, text: str) -> Completion:
        """A text as if the model had said it."""
        token_ids = self._family.encode_answer(text)
        return Completion(
            token_ids=token_ids,
            logprobs=np.zeros(len(token_ids), np.float32),
            policy_version=self._version(),
            finish_reason="stop",
            text=text,
        )

    def answer(self, demonstration: Demonstration) -> Completion:
        """The expert's turn as the tokens the model should have said."""
        return self.say(self._format(demonstration))

    def lesson(
        self, shown: Demonstration, prompt: Prompt, answer: Completion, images: int
    ) -> tuple[Prompt, list[Turn]]:
        """What goes beyond the answer: what the observation shows, and questions, each after the answer before it."""
        family = self._family
        if shown.detections or shown.mentions:
            prompt = family.label(prompt, shown.detections, images=images, mentions=shown.mentions)
        turns: list[Turn] = []
        so_far = np.concatenate([prompt.token_ids, answer.token_ids])
        for question, reply in shown.questions:
            ids = np.concatenate([so_far, family.encode_followup(question)])
            # As an answer that only looks, so that seeing is one skill whether asked about or acted on.
            completion = self.answer(Demonstration(actions=(), observation=reply))
            asked = replace(prompt, token_ids=ids, text=f"{prompt.text}{answer.text}\n{question}")
            turns.append(
                Turn(prompt=asked, completion=completion, parsed=ParsedAction(valid=True), reward=0.0)
            )
            so_far = np.concatenate([ids, completion.token_ids])
        return prompt, turns

    def portraits(
        self,
        crops: int,
        rng: np.random.Generator,
        shown: Demonstration,
        prompt: Prompt,
        answer: Completion,
        images: int,
    ) -> tuple[Prompt, list[Turn]]:
        """Cuts around what the images show, as turns of their own; the turn itself goes without its images."""
        nothing = self.say("")
        return replace(prompt, images=()), [
            Turn(prompt=crop, completion=nothing, parsed=ParsedAction(valid=True), reward=0.0)
            for crop in self._family.crops(prompt, shown.detections, images=images, count=crops, rng=rng)
        ]
