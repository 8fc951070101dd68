"""What an image token shows: labels at the right tokens, and a loss that teaches the vision tower."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from tiny import MODEL

from rllib_vlm.batching.packing import pack, to_torch
from rllib_vlm.batching.rows import PLACE, rows_from_trajectory
from rllib_vlm.core.columns import VLMColumns
from rllib_vlm.core.rl_module import VLMRLModule, _rows
from rllib_vlm.models.initialization import FILTER_NORM, cosine_filters, match_content
from rllib_vlm.models.qwen2_5_vl import Qwen25VL
from rllib_vlm.sims.household.env import Household
from rllib_vlm.types import Completion, Detection, Mention, Message, ParsedAction, Prompt, Trajectory, Turn

RNG = np.random.default_rng(0)
COLOURS = {"red": (220, 20, 20), "green": (20, 160, 30), "blue": (20, 50, 240)}


def picture(colour: str, *, row: int, column: int) -> tuple[np.ndarray, Detection]:
    """A grey picture of 2 x 3 image tokens with a coloured spot in one of them."""
    image = np.full((56, 84, 3), 127, np.uint8)
    image[28 * row + 8 : 28 * row + 20, 28 * column + 8 : 28 * column + 20] = COLOURS[colour]
    where = Detection(image=0, x=(column + 0.5) / 3, y=(row + 0.5) / 2, words=f"{colour} ball",
                      place="left 24 8", named=True)  # fmt: skip
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
    assert prompt.shown is not None and prompt.shown.shape == (6, len(prompt.token_ids))
    assert np.flatnonzero(prompt.shown[0] >= 0).tolist() == [tokens[6 + 5]]
    words = family.encode_answer(" blue ball")[:-1]
    place = family.encode_answer(" left 24 8")[:-1]
    assert prompt.shown[:, tokens[11]].tolist() == [words[0], words[-1], *place, 1]
    assert prompt.shown[-1, tokens].tolist() == [-1] * 6 + [0] * 5 + [
        1
    ]  # nothing is said of the past picture


def test_an_image_in_which_nothing_is_found_keeps_its_place() -> None:
    family = Qwen25VL.build({**MODEL, "vocab_size": 1024})
    image, where = picture("red", row=0, column=1)
    empty = np.full_like(image, 127)
    message = Message(role="user", text="<image><image>", images=(image, empty))
    prompt = family.label(family.encode([message]), [where], images=2)
    tokens = np.flatnonzero(prompt.token_ids == family.image_token_id)
    assert prompt.shown is not None
    assert np.flatnonzero(prompt.shown[0] >= 0).tolist() == [tokens[1]]


def test_what_a_text_tells_of_is_labelled_where_its_name_ends() -> None:
    family = Qwen25VL.build({**MODEL, "vocab_size": 1024})
    messages = [
        Message(role="system", text="fetch the red mug"),
        Message(
            role="user", text="in the kitchen; red mug left 12 8; oak table right 6 9; oak table ahead 0 20"
        ),
    ]
    prompt = family.encode(messages)
    told = [Mention(words="red mug", named=True), *[Mention(words="oak table", named=False)] * 2]
    shown = family.label(prompt, [], images=0, mentions=[*told, Mention(words="cyan sofa", named=True)]).shown
    assert shown is not None and (shown[:-1] == -1).all()
    labelled = np.flatnonzero(shown[-1] >= 0)
    mug, table = (int(family.encode_answer(words)[-2]) for words in (" red mug", " oak table"))
    assert prompt.token_ids[labelled].tolist() == [mug, table, table]
    assert shown[-1, labelled].tolist() == [1, 0, 0]
    # The instruction's mug stands before the message that tells where one is.
    assert labelled[0] > np.flatnonzero(prompt.token_ids == mug)[0]


def test_a_cut_shows_the_thing_and_what_stands_beside_it_and_says_so() -> None:
    family = Qwen25VL.build({**MODEL, "vocab_size": 1024})
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (112, 196, 3), np.uint8)
    ball = Detection(image=1, x=0.5, y=0.5, words="red ball", place="left 24 8", named=True)
    beside = Detection(image=1, x=0.5 + 10 / 196, y=0.5, words="blue ball")
    corner = Detection(image=1, x=0.999, y=0.0, words="green mug")
    elsewhere = Detection(image=0, x=0.5, y=0.5, words="green mug")
    past = np.zeros_like(image)
    message = Message(role="user", text="<image>" * 3 + "look", images=(past, past, image))
    prompt = family.encode([message])
    found = [ball, beside, corner, elsewhere]
    cuts = family.crops(prompt, found, images=2, count=20, rng=rng)
    assert len(cuts) == 80
    word = {w: int(family.encode_answer(f" {w}")[-2]) for w in ("red ball", "green mug")}
    colour = {w: int(family.encode_answer(f" {w}")[0]) for w in ("red ball", "blue ball", "green mug")}
    offsets = set()
    for i, cut in enumerate(cuts):
        (picture,) = cut.images
        assert picture.shape == (56, 56, 3)
        assert (cut.token_ids == family.image_token_id).sum() == 4 and len(cut.token_ids) == 6
        assert cut.shown is not None and (cut.shown[2:5] == -1).all() and (cut.shown[5] <= 0).all()
        if i >= 60:  # of the other image
            assert not picture.any()
            continue
        starts = [
            (y, x)
            for y in range(57)
            for x in range(141)
            if np.array_equal(image[y, x : x + 56], picture[0])
            and np.array_equal(image[y + 55, x : x + 56], picture[55])
        ]
        ((top, left),) = starts
        labels = {int(cut.shown[0, t]): t for t in range(1, 5) if cut.shown[0, t] >= 0}
        if i < 20:
            offsets.add((top, left))
            assert 8 <= 56 - top <= 48 and 8 <= 98 - left <= 48  # not at the edge
            token = 1 + 2 * int(56 - top >= 28) + int(98 - left >= 28)
            assert labels[colour["red ball"]] == token
            assert cut.shown[1, token] == word["red ball"]
        elif i >= 40:
            assert (top, left) == (0, 140)  # as far as the image goes
            assert labels == {colour["green mug"]: 2}
    assert len(offsets) > 15
    assert any({colour["red ball"], colour["blue ball"]} <= set(c.shown[0].tolist()) for c in cuts[:20])  # type: ignore[union-attr]


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


def module_of(**model: object) -> VLMRLModule:
    torch.manual_seed(0)
    config = {"family": "qwen2_5_vl", **MODEL, "vocab_size": 1024, **model}
    return VLMRLModule(model_config=config, observation_space=None, action_space=None)


def test_the_grounding_loss_teaches_colours() -> None:
    module = module_of()
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(80):
        batch = to_torch(pack(rows_of(module.family, rng, 16), max_tokens=400))
        mask = batch["grounding_mask"]
        assert int(mask.sum()) == 16
        out = module.forward_train(batch, with_grounding=True, with_logprobs=False)
        assert out.keys() == {VLMColumns.GROUNDING}
        loss = -out[VLMColumns.GROUNDING][mask].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    layers = module.family.model.model.language_model.layers
    assert all(p.grad is None for p in layers.parameters())  # the language model rests
    assert losses[0] > 1.0
    # Two words share the probability: log 2 is the least. Not knowing the colour costs log(3) / 2 more.
    assert losses[-1] < 0.693 + 0.2


def test_places_and_what_is_named_are_told_from_the_middle_of_the_language_model() -> None:
    module = module_of(num_layers=2)
    rows = rows_of(module.family, np.random.default_rng(0), 6)
    batch = to_torch(pack(rows, max_tokens=200))  # several packed rows, with padding
    out = module.forward_train(batch, with_grounding=True)
    depths = module.family.depths(_rows(batch))
    named, family = batch["labels"][..., -1], module.family
    assert torch.equal(batch["referring_mask"], batch["token_ids"] == family.image_token_id)
    assert int((named == 1).sum()) == len(rows) == int(batch["grounding_mask"].sum())
    scores = family.word_logits(depths.middle, torch.tensor(family.referring_words)).log_softmax(-1)
    expected = torch.where(named == 1, 20.0 * scores[..., 1], 0.5 * scores[..., 0])
    where = batch["referring_mask"]
    torch.testing.assert_close(out[VLMColumns.REFERRING][where], expected[where])
    assert not out[VLMColumns.REFERRING][~where].any()
    # "left 24 8" in all of them: three words, each among those three.
    where = batch["grounding_mask"]
    words = batch["labels"][where][0, 2:5]
    places = family.word_logits(depths.middle[where], words.sort().values).log_softmax(-1).mean(-1)
    names = module.forward_train(batch, with_grounding=True, with_logprobs=False)[VLMColumns.GROUNDING]
    torch.testing.assert_close(out[VLMColumns.GROUNDING][where], names[where] + places)


def _without_place(labels: np.ndarray) -> np.ndarray:
    labels = labels.copy()
    labels[:, PLACE.rows] = -1
    return labels


def test_a_place_is_optional() -> None:
    module = module_of()
    image, where = picture("red", row=0, column=0)
    prompt = prompt_of(module.family, [image], [replace(where, place="")])
    assert prompt.shown is not None and (prompt.shown[2:5] == -1).all() and prompt.shown[0].max() >= 0
    rows = [replace(row, labels=_without_place(row.labels)) for row in rows_of(module.family, RNG, 3)]
    batch = to_torch(pack(rows, max_tokens=400))
    names, both = (
        module.forward_train(batch, with_grounding=True, with_logprobs=w)[VLMColumns.GROUNDING]
        for w in (False, True)
    )
    assert names.any()
    torch.testing.assert_close(both, names)


def test_the_household_tells_what_its_pictures_show() -> None:
    env = Household(questions=2)
    told = 0
    for seed in range(6):
        env.reset(seed=seed, options={"start": "near"})
        seen = {s.words for s in env.scene.look()}
        thing = env.task.thing
        for found in env.expert(max_actions=5)().detections:
            assert 0.0 <= found.x < 1.0 and 0.0 <= found.y < 1.0 and found.image in (0, 1)
            assert found.words in seen
            assert found.named == (found.words == thing)
            assert found.place.split()[0] in ("ahead", "left", "right")
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


def test_heads_find_what_is_like_the_token_that_asks() -> None:
    torch.manual_seed(0)
    queries, keys = torch.randn(64, 48) / 7, torch.randn(32, 48) / 7  # two query heads share a key head
    match_content(queries, keys, head_size=32)
    tokens = torch.nn.functional.rms_norm(torch.randn(20, 48), (48,))
    slow = torch.cat([torch.arange(8, 16), torch.arange(24, 32)])
    for head in queries.view(2, 32, 48):
        scores = (tokens @ head[slow].T) @ (tokens @ keys[slow].T).T
        assert (scores.argmax(-1) == torch.arange(20)).all()
