"""What an image token shows: labels at the right tokens, and a loss that teaches the vision tower."""

from __future__ import annotations

import numpy as np
import torch
from tiny import MODEL

from rllib_vlm.batching.packing import pack, to_torch
from rllib_vlm.batching.rows import rows_from_trajectory
from rllib_vlm.core.columns import VLMColumns
from rllib_vlm.core.rl_module import VLMRLModule
from rllib_vlm.models.initialization import FILTER_NORM, cosine_filters
from rllib_vlm.models.qwen2_5_vl import Qwen25VL
from rllib_vlm.sims.household.env import Household
from rllib_vlm.types import Completion, Detection, Message, ParsedAction, Prompt, Trajectory, Turn

COLOURS = {"red": (220, 20, 20), "green": (20, 160, 30), "blue": (20, 50, 240)}


def picture(colour: str, *, row: int, column: int) -> tuple[np.ndarray, Detection]:
    """A grey picture of 2 x 3 image tokens with a coloured spot in one of them."""
    image = np.full((56, 84, 3), 127, np.uint8)
    image[28 * row + 8 : 28 * row + 20, 28 * column + 8 : 28 * column + 20] = COLOURS[colour]
    where = Detection(image=0, x=(column + 0.5) / 3, y=(row + 0.5) / 2, words=f"{colour} ball")
    return image, where


def prompt_of(family: Qwen25VL, images: list[np.ndarray], found: list[Detection]) -> Prompt:
    message = Message(role="user", text="<image>" * len(images) + "look", images=tuple(images))
    return family.label(family.encode([message]), found, images=1)


def test_labels_stand_at_the_token_that_shows_the_thing() -> None:
    family = Qwen25VL.build({**MODEL, "vocab_size": 1024})
    old, _ = picture("red", row=0, column=0)
    image, where = picture("blue", row=1, column=2)
    hidden = Detection(
        image=0, x=where.x, y=where.y, words="green mug"
    )  # behind the first, in the same place
    prompt = prompt_of(family, [old, image], [where, hidden])  # of the last picture; the first is a past one
    tokens = np.flatnonzero(prompt.token_ids == family.image_token_id)
    assert prompt.shown is not None and prompt.shown.shape == (2, len(prompt.token_ids))
    assert np.flatnonzero(prompt.shown[0] >= 0).tolist() == [tokens[6 + 5]]
    words = family.encode_answer(" blue ball")[:-1]
    assert prompt.shown[:, tokens[11]].tolist() == [words[0], words[-1]]


def test_an_image_in_which_nothing_is_found_keeps_its_place() -> None:
    family = Qwen25VL.build({**MODEL, "vocab_size": 1024})
    image, where = picture("red", row=0, column=1)
    empty = np.full_like(image, 127)
    message = Message(role="user", text="<image><image>", images=(image, empty))
    prompt = family.label(family.encode([message]), [where], images=2)
    tokens = np.flatnonzero(prompt.token_ids == family.image_token_id)
    assert prompt.shown is not None
    assert np.flatnonzero(prompt.shown[0] >= 0).tolist() == [tokens[1]]


def rows_of(family: Qwen25VL, rng: np.random.Generator, count: int) -> list:
    rows = []
    for _ in range(count):
        colour = str(rng.choice(sorted(COLOURS)))
        image, where = picture(colour, row=int(rng.integers(2)), column=int(rng.integers(3)))
        answer = family.encode_answer("<answer>done</answer>")
        completion = Completion(
            token_ids=answer,
            logprobs=np.zeros(len(answer), np.float32),
            policy_version=0,
            finish_reason="stop",
        )
        turn = Turn(
            prompt=prompt_of(family, [image], [where]),
            completion=completion,
            parsed=ParsedAction(valid=True),
            reward=0.0,
        )
        trajectory = Trajectory(turns=(turn,), group="g", terminated=True, truncated=False, success=True)
        rows += rows_from_trajectory(trajectory)
    return rows


def test_the_grounding_loss_teaches_colours() -> None:
    torch.manual_seed(0)
    module = VLMRLModule(
        model_config={"family": "qwen2_5_vl", **MODEL, "vocab_size": 1024},
        observation_space=None,
        action_space=None,
    )
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(80):
        batch = to_torch(pack(rows_of(module.family, rng, 16), max_tokens=400))
        mask = batch["grounding_mask"]
        assert int(mask.sum()) == 16
        loss = -module.forward_train(batch, with_grounding=True)[VLMColumns.GROUNDING][mask].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 4.0
    # Two words share the probability: log 2 is the least. Not knowing the colour costs log(3) / 2 more.
    assert losses[-1] < 0.693 + 0.2


def test_the_household_tells_what_its_pictures_show() -> None:
    env = Household(questions=2)
    told = 0
    for seed in range(6):
        env.reset(seed=seed, options={"start": "near"})
        seen = {s.words for s in env.scene.look()}
        for found in env.expert(max_actions=5)().detections:
            assert 0.0 <= found.x < 1.0 and 0.0 <= found.y < 1.0 and found.image in (0, 1)
            assert found.words in seen
            told += 1
    assert told > 10
    env.close()
    quiet = Household(observation="text", questions=2)
    quiet.reset(seed=0)
    assert quiet.expert(max_actions=5)().detections == ()
    quiet.close()


def test_the_first_layer_is_orthogonal_and_sees_colours_apart() -> None:
    weight = cosine_filters((24, 3, 2, 14, 14)).sum(2).flatten(1)
    torch.testing.assert_close(weight @ weight.T, FILTER_NORM**2 * torch.eye(24), rtol=0, atol=1e-6)
    red = torch.zeros(3, 14, 14)
    red[0] = 1.0
    assert (weight @ red.flatten())[:2].abs().min() > 1.0  # brightness, and red against green
