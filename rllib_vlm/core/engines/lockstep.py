"""Passes that learners run side by side, where a pass on one waits for the same pass on all others.

ZeRO sends parts of weights and gradients in the middle of forward and backward passes. So learners must run equally
many passes, and passes that touch the same parameters: one with pictures beside one without would wait for ever for
the vision tower's. Here pieces without pictures come first, then those with (what is touched last must hold all that
was touched before: offloading sends gradients with the last pass), and learners that have fewer of a kind run passes
over a row of no consequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from rllib_vlm.batching.micro import micro_batches
from rllib_vlm.batching.packing import Batch, pad
from rllib_vlm.batching.rows import rows_from_trajectory
from rllib_vlm.models.base import VLMFamily
from rllib_vlm.types import Completion, Message, ParsedAction, Trajectory, Turn

_SIDE = 56  # pixels of a filler's picture: the smallest that every family reads
_MASKS = ("loss_mask", "value_mask", "grounding_mask", "referring_mask")


class Lockstep:
    """Of one learner; all of them must ask for the same, in the same order."""

    def __init__(self, family: VLMFamily, gather: Callable[[Any], list[Any]]) -> None:
        self._family = family
        self._gather = gather
        self._fillers: dict[bool, Batch] = {}

    def rounds(self, own: int) -> int:
        """The most of any learner."""
        return int(max(self._gather(own)))

    def pieces(self, batch: Batch | None, *, max_tokens: int) -> Iterator[Batch]:
        """The micro-batches of `batch`, and fillers; a filler's rows come from nowhere (`row_ids` are -1)."""
        own: dict[bool, list[Batch]] = {False: [], True: []}
        for piece in micro_batches(batch, max_tokens=max_tokens) if batch is not None else ():
            own[bool((piece["image_sizes"][..., 0] > 0).any())].append(piece)
        counts = self._gather({pictures: len(pieces) for pictures, pieces in own.items()})
        for pictures, pieces in own.items():
            yield from pieces
            missing = max(count[pictures] for count in counts) - len(pieces)
            for _ in range(missing):
                yield self._filler(pictures=pictures)

    def _filler(self, *, pictures: bool) -> Batch:
        """One row that reads a word, or a picture, answers with a token and teaches nothing."""
        if pictures not in self._fillers:
            self._fillers[pictures] = filler(self._family, pictures=pictures)
        return self._fillers[pictures]


def filler(family: VLMFamily, *, pictures: bool) -> Batch:
    """A batch of one row that touches every parameter that its kind of rows does, and counts nowhere."""
    images = (np.zeros((_SIDE, _SIDE, 3), np.uint8),) * pictures
    prompt = family.encode([Message(role="user", text="<image>" * pictures + "a", images=images)])
    sampled = next(i for i in range(family.vocab_size) if i not in family.banned_token_ids)
    completion = Completion(
        token_ids=np.array([sampled]),
        logprobs=np.zeros(1, np.float32),
        policy_version=0,
        finish_reason="stop",
    )
    turn = Turn(prompt=prompt, completion=completion, parsed=ParsedAction(valid=False), reward=0.0)
    state = Trajectory(turns=(turn,), group="", terminated=False, truncated=True, success=False)
    batch = pad(rows_from_trajectory(state))
    for name in _MASKS:
        batch[name][:] = False
    batch["row_ids"][:] = -1
    return batch


def pieces_of(batch: Batch | None, *, max_tokens: int, lockstep: Lockstep | None) -> Iterator[Batch]:
    """The micro-batches of a batch; None has none of its own."""
    if lockstep is not None:
        yield from lockstep.pieces(batch, max_tokens=max_tokens)
    elif batch is not None:
        yield from micro_batches(batch, max_tokens=max_tokens)
