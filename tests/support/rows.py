"""Trajectories and rows of made-up turns, in a family's own tokens."""

from __future__ import annotations

import numpy as np

from rllib_vlm.batching.rows import Row, rows_from_trajectory
from rllib_vlm.types import Completion, Message, ParsedAction, Trajectory, Turn


def turn(family, text="go left", answer="left", *, images=(), reward=0.0, version=1) -> Turn:
    content = "<image>" * len(images) + text
    prompt = family.encode([Message(role="user", text=content, images=tuple(images))])
    ids = family.encode_answer(answer)
    completion = Completion(
        token_ids=ids,
        logprobs=np.full(len(ids), -1.0, np.float32),
        policy_version=version,
        finish_reason="stop",
        text=answer,
    )
    return Turn(
        prompt=prompt,
        completion=completion,
        parsed=ParsedAction(valid=True, actions=(answer,)),
        reward=reward,
    )


def trajectory(family, turns=2, *, group="train/1", terminated=True, **kwargs) -> Trajectory:
    return Trajectory(
        turns=tuple(turn(family, f"turn {i}", reward=float(i), **kwargs) for i in range(turns)),
        group=group,
        terminated=terminated,
        truncated=not terminated,
        success=terminated,
    )


def random_rows(family) -> list[Row]:
    words = ["left", "right right", "up and down", "down"]
    texts = ["see the ice", "go", "a much longer prompt than the others have"]
    return [
        row
        for i, answer in enumerate(words)
        for row in rows_from_trajectory(
            Trajectory(
                turns=(turn(family, texts[i % 3], answer),),
                group="g",
                terminated=True,
                truncated=False,
                success=True,
            )
        )
    ]
