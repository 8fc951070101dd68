"""What every model family of the registry promises; a new row is tested by being there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig

from rllib_vlm import registry
from rllib_vlm.models.base import TokenRows, VLMFamily
from rllib_vlm.models.sampling import token_logprobs
from rllib_vlm.models.sessions import SessionCache
from rllib_vlm.types import Detection, Message, Prompt, SamplingParams


@pytest.fixture(scope="module", params=registry.names("models"))
def family(request: pytest.FixtureRequest) -> VLMFamily:
    """A tiny model, its weights scaled up so that prompts and images decide what it says."""
    family: Any = registry.resolve("models", request.param).build({"size": "tiny"})
    with torch.no_grad():
        for parameter in family.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
    return family


def prompt(family: VLMFamily, images: int, words: int) -> Prompt:
    rng = np.random.default_rng(10 * images + words)
    sizes = ((56, 84), (100, 70), (112, 196))
    pictures = tuple(rng.integers(0, 256, (*sizes[i % 3], 3), dtype=np.uint8) for i in range(images))
    text = "<image>" * images + "go to the mug " * words
    return family.encode(
        [Message(role="system", text="a robot"), Message(role="user", text=text, images=pictures)]
    )


def rows(family: VLMFamily, prompts: list[Prompt], answers: list[NDArray[np.int64]]) -> TokenRows:
    whole = [np.concatenate([p.token_ids, a]) for p, a in zip(prompts, answers, strict=True)]
    length, count = max(map(len, whole)), max(len(p.images) for p in prompts)
    token_ids = np.full((len(whole), length), family.pad_token_id)
    segments = np.zeros((len(whole), length), dtype=np.int64)
    images = np.zeros((len(whole), count, 224, 224, 3), dtype=np.uint8)
    sizes = np.zeros((len(whole), count, 2), dtype=np.int64)
    for r, ids in enumerate(whole):
        token_ids[r, : len(ids)], segments[r, : len(ids)] = ids, 1
        for i, image in enumerate(prompts[r].images):
            images[r, i, : image.shape[0], : image.shape[1]] = image
            sizes[r, i] = image.shape[:2]
    arrays = {"token_ids": token_ids, "segment_ids": segments, "images": images, "image_sizes": sizes}
    return TokenRows(**{name: torch.from_numpy(value) for name, value in arrays.items()})


def test_importance_ratio_is_one_at_unchanged_weights(family: VLMFamily) -> None:
    prompts = [prompt(family, n, words) for n in range(4) for words in (1, 6)]
    sampling = SamplingParams(temperature=0.7, max_new_tokens=10, seed=0)
    answers = family.generate(prompts, sampling)
    with torch.no_grad():
        logits = family.logits(family.hidden(rows(family, prompts, [ids for ids, _ in answers])))
    worst = 0.0
    for r, (ids, logprobs) in enumerate(answers):
        at = len(prompts[r].token_ids) - 1
        learned = token_logprobs(logits[r, at : at + len(ids)], torch.from_numpy(ids), sampling)
        worst = max(worst, float((learned - torch.from_numpy(logprobs)).abs().max()))
    assert worst < 1e-3
    assert len({tuple(ids.tolist()) for ids, _ in answers}) > 1


def test_importance_ratio_is_one_where_a_conversation_goes_on(family: VLMFamily) -> None:
    """Turn by turn with what earlier turns left behind, conversations of different lengths together."""
    cache = SessionCache(64)
    rng = np.random.default_rng(0)
    chats = [[Message(role="system", text="a robot " * (1 + i))] for i in range(4)]
    sampling = SamplingParams(temperature=0.7, max_new_tokens=8, seed=0)
    for turn in range(3):
        for i, chat in enumerate(chats):
            count = (i + turn) % 3
            images = tuple(rng.integers(0, 256, (56, 28 * (1 + n), 3), dtype=np.uint8) for n in range(count))
            text = "<image>" * count + "go to the mug " * (1 + i)
            chat.append(Message(role="user", text=text, images=images))
        prompts = [family.encode(chat) for chat in chats]
        answers = family.generate(prompts, sampling, cache=cache, sessions=[f"chat {i}" for i in range(4)])
        with torch.no_grad():
            logits = family.logits(family.hidden(rows(family, prompts, [ids for ids, _ in answers])))
        for r, (ids, logprobs) in enumerate(answers):
            at = len(prompts[r].token_ids) - 1
            learned = token_logprobs(logits[r, at : at + len(ids)], torch.from_numpy(ids), sampling)
            torch.testing.assert_close(learned, torch.from_numpy(logprobs), atol=1e-3, rtol=0)
            chats[r].append(Message(role="assistant", text=family.decode(ids), token_ids=ids))


def test_packed_segments_never_see_each_other(family: VLMFamily) -> None:
    """Whether or not a family gains by it (`packs`): a packed row says what its segments say alone."""
    prompts = [prompt(family, n, words) for n, words in ((1, 3), (0, 1), (2, 2))]
    alone = rows(family, prompts, [family.encode_answer("done")] * 3)
    real, shown = alone.segment_ids > 0, alone.image_sizes[..., 0] > 0
    packed = TokenRows(
        token_ids=alone.token_ids[real][None],
        segment_ids=(torch.arange(1, 4)[:, None] * real)[real][None],
        images=alone.images[shown][None],
        image_sizes=alone.image_sizes[shown][None],
    )
    with torch.no_grad():
        together, expected = family.hidden(packed)[0], family.hidden(alone)[real]
    torch.testing.assert_close(together, expected, atol=1e-4, rtol=1e-4)


def test_shapes_and_types(family: VLMFamily) -> None:
    prompts = [prompt(family, n, 2) for n in (0, 2)]
    [first, second] = family.generate(prompts, SamplingParams(max_new_tokens=3))
    for ids, logprobs in (first, second):
        assert ids.dtype == np.int64 and logprobs.dtype == np.float32
        assert 0 < len(ids) == len(logprobs) <= 3 and (logprobs <= 0).all()
    batch = rows(family, prompts, [first[0], second[0]])
    hidden = family.hidden(batch)
    assert hidden.shape == (*batch.token_ids.shape, family.hidden_size)
    logits = family.logits(hidden[:, -2:])
    assert logits.shape == (2, 2, family.vocab_size) and logits.dtype == torch.float32
    assert bool((logits[..., list(family.banned_token_ids)] == -torch.inf).all())
    assert not set(family.banned_token_ids) & set(family.stop_token_ids)
    assert sorted(family.banned_token_ids) == list(family.banned_token_ids)
    if family.output_weight is not None:
        allowed = logits.isfinite()
        torch.testing.assert_close((hidden[:, -2:] @ family.output_weight.T)[allowed], logits[allowed])


def test_gradients_reach_the_language_model_and_the_vision_tower(family: VLMFamily) -> None:
    batch = rows(family, [prompt(family, 2, 1)], [family.encode_answer("done")])
    family.model.zero_grad()
    family.logits(family.hidden(batch)).log_softmax(-1)[0, :, family.stop_token_ids[0]].sum().backward()
    without = [n for n, p in family.model.named_parameters() if p.requires_grad and p.grad is None]
    family.model.zero_grad()
    assert not without


@pytest.mark.parametrize(
    "text", ["<answer>move_ahead,done</answer>", '{"actions": ["done"]}', " é\n漢 1.50 ", ""]
)
def test_answers_come_back_as_they_were(family: VLMFamily, text: str) -> None:
    ids = family.encode_answer(text)
    assert ids.dtype == np.int64 and int(ids[-1]) in family.stop_token_ids
    assert family.decode(ids) == text
    assert not set(ids.tolist()) & set(family.banned_token_ids)


def test_prompts_hold_their_images_and_sampled_ids(family: VLMFamily) -> None:
    short, long = prompt(family, 1, 1), prompt(family, 3, 1)
    assert len(long.token_ids) > len(short.token_ids) and len(long.images) == 3
    assert all(i.dtype == np.uint8 and i.shape[2] == 3 for i in long.images)
    sampled = family.encode_answer("go")[::-1][1:]
    chat = [
        Message(role="user", text="go"),
        Message(role="assistant", text="go", token_ids=sampled),
        Message(role="user", text="on"),
    ]
    ids = family.encode(chat).token_ids.tolist()
    assert any(ids[i : i + len(sampled)] == sampled.tolist() for i in range(len(ids)))
    assert ids[: len(ids) // 2] == family.encode(chat).token_ids.tolist()[: len(ids) // 2]


def test_labels_of_what_is_seen_stand_at_image_tokens_or_nowhere(family: VLMFamily) -> None:
    given, seen = prompt(family, 1, 1), [Detection(image=0, x=0.5, y=0.5, words="red mug", place="left")]
    shown = family.label(given, seen, images=1).shown
    assert shown is not None and shown.shape == (6, len(given.token_ids))
    cuts = family.crops(given, seen, images=1, count=2, rng=np.random.default_rng(0))
    assert bool((shown[0] >= 0).any()) == bool(cuts) == family.labels_images


def test_a_saved_model_says_the_same(family: VLMFamily, tmp_path: Path) -> None:
    family.save_pretrained(tmp_path)
    opened = type(family).build({"checkpoint": str(tmp_path)})
    prompts = [prompt(family, n, 2) for n in range(3)]
    greedy = SamplingParams(temperature=0, max_new_tokens=5)
    for (ids, logprobs), (again, again_logprobs) in zip(
        family.generate(prompts, greedy), opened.generate(prompts, greedy), strict=True
    ):
        assert ids.tolist() == again.tolist()
        np.testing.assert_allclose(logprobs, again_logprobs, atol=1e-5)


def test_a_saved_model_tells_transformers_what_is_never_sampled(family: VLMFamily, tmp_path: Path) -> None:
    family.save_pretrained(tmp_path)
    told = family.generation_config(tmp_path)
    assert tuple(told.suppress_tokens) == family.banned_token_ids
    assert told.eos_token_id in family.stop_token_ids and told.pad_token_id == family.pad_token_id
    assert GenerationConfig.from_pretrained(tmp_path).to_dict() == told.to_dict()
