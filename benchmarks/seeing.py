"""What a model's vision tower knows by name, by how large things appear: tours of held-out houses.

`python -m benchmarks seeing [CHECKPOINT]`, a Hugging Face directory; by default the model of the package.
"""

from __future__ import annotations

import math
from collections import defaultdict
from statistics import fmean
from typing import Any

import torch

from rllib_vlm.models.base import TokenRows
from rllib_vlm.models.qwen2_5_vl import Qwen25VL
from rllib_vlm.sims.household.catalogue import ITEM_COLORS, ITEMS
from rllib_vlm.sims.household.env import Household
from rllib_vlm.types import Message

HOUSES = 40
LARGE_PIXELS = 128.0


def run(checkpoint: str = "package:household") -> dict[str, Any]:
    """The share of kinds that are right, among all kinds, of things of `LARGE_PIXELS` and more is the headline."""
    family = Qwen25VL.build({"checkpoint": checkpoint})
    env = Household(split="heldout")
    right: dict[float, list[tuple[bool, bool]]] = defaultdict(list)  # by pixels: (colour, kind)
    for seed in range(HOUSES):
        observation, _ = env.reset(seed=seed, options={"tour": True})
        guide, over = env.expert(), False
        assert guide is not None
        while not over:
            names = {f"{item.color} {item.type}" for item in env.episode.house.items}
            found = [d for d in guide().detections if d.words in names]
            for pixels, colour, kind in zip(
                [d.pixels for d in found], *read(family, observation, found), strict=True
            ):
                right[pixels].append((colour, kind))
            observation, _, _, over, _ = env.turn(("done",))
    env.close()
    details: dict[str, Any] = {"checkpoint": checkpoint, "houses": HOUSES}
    bands: dict[int, list[tuple[bool, bool]]] = defaultdict(list)
    for pixels, answers in right.items():
        bands[2 ** int(math.log2(pixels))] += answers
    for low in sorted(bands):
        band = f"{low} to {2 * low} pixels"
        details[f"{band}: things"] = len(bands[low])
        details[f"{band}: colour"] = fmean(colour for colour, _ in bands[low])
        details[f"{band}: kind"] = fmean(kind for _, kind in bands[low])
    large = [kind for pixels, answers in right.items() if pixels >= LARGE_PIXELS for _, kind in answers]
    return {
        "name": "seeing", "value": fmean(large), "unit": "share of kinds named right, large things",
        "details": details,
    }  # fmt: skip


@torch.no_grad()
def read(family: Qwen25VL, observation: Any, found: list[Any]) -> tuple[list[bool], list[bool]]:
    """Whether the nearest colour word, and the nearest word for a kind, are those of each detection."""
    if not found:
        return [], []
    pictures = tuple(observation["images"])
    prompt = family.encode([Message(role="user", text="<image>" * len(pictures), images=pictures)])
    ids = torch.from_numpy(prompt.token_ids)[None]
    features = family.embedded(
        TokenRows(
            token_ids=ids,
            segment_ids=torch.ones_like(ids),
            images=torch.stack([torch.from_numpy(image) for image in prompt.images])[None],
            image_sizes=torch.tensor([[image.shape[:2] for image in prompt.images]]),
        )
    )[0]
    answers: tuple[list[bool], list[bool]] = ([], [])
    for detection in found:
        shown = family.label(prompt, [detection], images=len(pictures)).shown
        assert shown is not None
        (at,) = (shown[0] >= 0).nonzero()[0]
        for which, words in enumerate((_colours(family), _kinds(family))):
            nearest = words[int(family.word_logits(features[at], torch.tensor(words)).argmax())]
            answers[which].append(nearest == shown[which, at])
    return answers


def _colours(family: Qwen25VL) -> list[int]:
    return [int(family.encode_answer(f" {colour}")[0]) for colour in ITEM_COLORS]


def _kinds(family: Qwen25VL) -> list[int]:
    return [int(family.encode_answer(f" {kind}")[-2]) for kind in ITEMS]
