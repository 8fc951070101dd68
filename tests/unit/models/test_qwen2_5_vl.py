"""The family against transformers' own forward, against itself unpacked, and against its own samples."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rllib_vlm.errors import ModelError
from rllib_vlm.models.base import TokenRows
from rllib_vlm.models.qwen2_5_vl import Qwen25VL
from rllib_vlm.models.qwen2_5_vl.segments import Segments
from rllib_vlm.models.sampling import token_logprobs
from rllib_vlm.types import Message, Prompt, SamplingParams
from tests.unit.models.conftest import make_hot, make_prompt

Segment = tuple[Prompt, NDArray[np.int64]]


def to_rows(rows: list[list[Segment]], pad: int, *, extra: int = 0, left: int = 0) -> TokenRows:
    """Rows of packed (prompt, answer) segments, padded by `extra` on the right and `left` on the left."""
    ids = [np.concatenate([np.concatenate([p.token_ids, a]) for p, a in row]) for row in rows]
    length = max(map(len, ids)) + extra + left
    token_ids = np.full((len(rows), length), pad)
    segments = np.zeros((len(rows), length), dtype=np.int64)
    images = [[i for p, _ in row for i in p.images] for row in rows]
    count = max(map(len, images))
    height = max((i.shape[0] for r in images for i in r), default=1)
    width = max((i.shape[1] for r in images for i in r), default=1)
    # Whatever stands beyond an image's valid corner must not matter.
    pixels = np.full((len(rows), count, height, width, 3), 77, dtype=np.uint8)
    sizes = np.zeros((len(rows), count, 2), dtype=np.int64)
    for r, row in enumerate(rows):
        token_ids[r, left : left + len(ids[r])] = ids[r]
        at = left
        for s, (p, a) in enumerate(row, 1):
            segments[r, at : at + len(p.token_ids) + len(a)] = s
            at += len(p.token_ids) + len(a)
        for i, image in enumerate(images[r]):
            pixels[r, i, : image.shape[0], : image.shape[1]] = image
            sizes[r, i] = image.shape[:2]
    return TokenRows(
        token_ids=torch.from_numpy(token_ids),
        segment_ids=torch.from_numpy(segments),
        images=torch.from_numpy(pixels),
        image_sizes=torch.from_numpy(sizes),
    )


def some_segments(family: Qwen25VL) -> list[Segment]:
    answers = ["<answer>move_ahead</answer>", "done", "<answer>rotate_left,move_ahead</answer>", "a b c d"]
    return [
        (make_prompt(family, n, words=3 + 2 * n, seed=n), family.encode_answer(answers[n])) for n in range(4)
    ]


@pytest.fixture(scope="module")
def reference(family: Qwen25VL) -> list[torch.Tensor]:
    """Hidden states of each segment alone, by transformers' forward with its own positions and patches."""
    from transformers import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 1 << 24})
    outputs = []
    for prompt, answer in some_segments(family):
        ids = torch.from_numpy(np.concatenate([prompt.token_ids, answer]))[None]
        pictures = {}
        if prompt.images:
            pictures = dict(processor(images=list(prompt.images), return_tensors="pt"))
        with torch.no_grad():
            out = family.model.model(
                input_ids=ids, mm_token_type_ids=(ids == family.image_token_id).int(), **pictures
            )
        outputs.append(out.last_hidden_state[0])
    return outputs


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_hidden_states_are_those_of_transformers(family: Qwen25VL, reference: list[torch.Tensor]) -> None:
    segments = some_segments(family)
    with torch.no_grad():
        hidden = family.hidden(to_rows([[s] for s in segments], family.pad_token_id))
    for row, expected in zip(hidden, reference, strict=True):
        close(row[: len(expected)], expected)
    # The reference itself can tell images and positions apart, or the test above would be empty.
    assert float(reference[0].std()) > 0.1


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1), (2, 0, 3)])
def test_packed_segments_never_see_each_other(
    family: Qwen25VL, reference: list[torch.Tensor], order: tuple[int, ...]
) -> None:
    segments = some_segments(family)
    rows = to_rows([[segments[i] for i in order], [segments[order[0]]]], family.pad_token_id, extra=3)
    with torch.no_grad():
        hidden = family.hidden(rows)
    for row, members in ((0, order), (1, order[:1])):
        at = 0
        for i in members:
            close(hidden[row, at : at + len(reference[i])], reference[i])
            at += len(reference[i])


@pytest.mark.parametrize(("extra", "left"), [(0, 0), (9, 0), (0, 5), (4, 2)])
def test_padding_changes_nothing(
    family: Qwen25VL, reference: list[torch.Tensor], extra: int, left: int
) -> None:
    segments = some_segments(family)
    rows = to_rows([[s] for s in segments], family.pad_token_id, extra=extra, left=left)
    with torch.no_grad():
        hidden = family.hidden(rows)
    for row, expected in zip(hidden, reference, strict=True):
        close(row[left : left + len(expected)], expected)


def alike_segments(family: Qwen25VL) -> list[Segment]:
    """Conversations that begin alike: wholly, up to a word, up to a picture of another content or size, or not."""
    picture, _ = (make_prompt(family, 1, words=3, seed=n).images[0] for n in (0, 1))
    other = picture.copy()
    other[-1, -1] ^= 255
    wide = np.concatenate([picture, picture], 1)

    def asked(*texts: str, images: tuple[NDArray[np.uint8], ...] = (picture,)) -> Prompt:
        system = Message(role="system", text="You see a room. Say where you go.")
        return family.encode([system, Message(role="user", text=" ".join(texts), images=images)])

    first = asked("look <image> and go to the mug")
    answer = family.encode_answer("<answer>move_ahead</answer>")
    return [
        (first, answer),
        (asked("look <image> and go to the vase"), answer),
        (asked("look <image> and go to the mug", images=(other,)), answer),
        (asked("look <image> and go to the mug", images=(wide,)), answer),
        (first, family.encode_answer("done")),
        (first, answer[:2]),
        (asked("go to the mug", images=()), answer),
        (first, answer),
    ]


@pytest.mark.parametrize("which", ["unlike", "alike"])
def test_plain_forward_and_gradients_agree_with_the_fast_one(family: Qwen25VL, which: str) -> None:
    segments = some_segments(family) if which == "unlike" else alike_segments(family)
    rows = to_rows([segments[:2], segments[2:]], family.pad_token_id)
    real = (rows.segment_ids > 0)[..., None]
    wanted = torch.randn(*real.shape[:2], family.hidden_size, generator=torch.Generator().manual_seed(0))

    def gradients(**options: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        other = Qwen25VL.__new__(Qwen25VL)
        other.__dict__.update(family.__dict__)
        other.config = dataclasses.replace(family.config, **options)
        other.model.zero_grad()
        hidden = other.hidden(rows)
        (hidden * real * wanted).sum().backward()
        grads = {n: p.grad.clone() for n, p in other.model.named_parameters() if p.grad is not None}
        other.model.zero_grad()
        return hidden.detach() * real, grads

    hidden, fast = gradients()
    for options in ({"plain_forward": True}, {"gradient_checkpointing": True}):
        other_hidden, other = gradients(**options)
        close(hidden, other_hidden)
        assert fast.keys() == other.keys()
        for name, gradient in fast.items():
            scale = float(other[name].abs().max())
            error = float((gradient - other[name]).abs().max()) / scale
            assert error < 1e-4, f"{name}: gradients differ by {error:.1e} of the largest"
    assert float(fast["model.visual.patch_embed.proj.weight"].abs().max()) > 0


@pytest.mark.parametrize("plain", [False, True])
def test_what_segments_begin_with_is_computed_once(family: Qwen25VL, plain: bool) -> None:
    a, vase, other, wide, done, short, text, again = alike_segments(family)

    def computed(*some: Segment) -> int:
        rows = to_rows([[s] for s in some], family.pad_token_id, left=int(plain))
        groups, grids, _ = family._group_rows(rows)
        line = Segments(rows.segment_ids, family._contents(rows, groups, grids)).tokens
        real = len(line.unique())
        assert real <= len(line) < real + max(16, real / 16)
        return real

    def length(segment: Segment) -> int:
        return len(segment[0].token_ids) + len(segment[1])

    assert computed(a, again) == computed(a, short) == computed(a) == length(a)
    assert computed(a, done) == length(a) + len(done[1])
    # Up to the word that differs; the chat's ends and answers stand behind.
    ids = [np.concatenate(s) for s in ((a[0].token_ids, a[1]), (vase[0].token_ids, vase[1]))]
    word = int((ids[0][: min(map(len, ids))] != ids[1][: min(map(len, ids))]).argmax())
    assert computed(a, vase) == length(a) + length(vase) - word
    picture = int((a[0].token_ids == family.image_token_id).argmax())
    assert computed(a, other) == length(a) + length(other) - picture
    assert computed(a, wide) == length(a) + length(wide) - picture
    assert computed(a, a, other, other, again) == computed(a, other)
    assert computed(text) == length(text)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_states_that_are_read_are_those_of_all(family: Qwen25VL, checkpointing: bool) -> None:
    segments = alike_segments(family)
    rows = to_rows([segments[:3], segments[3:]], family.pad_token_id, extra=2)
    generator = torch.Generator().manual_seed(0)
    read = torch.rand(rows.segment_ids.shape, generator=generator) < 0.3
    other = Qwen25VL.__new__(Qwen25VL)
    other.__dict__.update(family.__dict__)
    other.config = dataclasses.replace(family.config, gradient_checkpointing=checkpointing)
    real = (read & (rows.segment_ids > 0))[..., None]
    wanted = real * torch.randn(*real.shape[:2], family.hidden_size, generator=generator)

    def states(read: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        other.model.zero_grad()
        depths = other.depths(dataclasses.replace(rows, read=read))
        (depths.last * wanted).sum().backward()
        grads = [p.grad.clone() for p in other.model.parameters() if p.grad is not None]
        other.model.zero_grad()
        return depths.last.detach() * real, depths.middle.detach(), grads

    (last, middle, grads), (all_last, all_middle, all_grads) = states(read), states(None)
    close(last, all_last)
    close(middle, all_middle)
    for gradient, expected in zip(grads, all_grads, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)


def test_padding_alone_is_nothing_to_compute(family: Qwen25VL) -> None:
    rows = to_rows([[some_segments(family)[0]]], family.pad_token_id)
    rows = dataclasses.replace(
        rows,
        token_ids=torch.zeros(2, 3, dtype=torch.int64),
        segment_ids=torch.zeros(2, 3, dtype=torch.int64),
        images=rows.images[:, :0].expand(2, -1, -1, -1, -1),
        image_sizes=rows.image_sizes[:, :0].expand(2, -1, -1),
    )
    hidden = family.hidden(rows)
    assert hidden.shape == (2, 3, family.hidden_size)
    hidden.sum().backward()  # a learner without rows takes part in it


def sampled_rows(family: Qwen25VL, prompts: list[Prompt], answers: list[NDArray[np.int64]]) -> torch.Tensor:
    rows = to_rows([[s] for s in zip(prompts, answers, strict=True)], family.pad_token_id)
    with torch.no_grad():
        return family.logits(family.hidden(rows))


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0.7, max_new_tokens=12, seed=1),
        SamplingParams(temperature=1.3, top_p=0.8, max_new_tokens=12, seed=2),
        SamplingParams(temperature=0.0, max_new_tokens=12),
    ],
)
@pytest.mark.parametrize("system", ["", "you are a robot in a house with several rooms. turn and look. " * 2])
def test_log_probs_of_samples_are_those_of_learning(
    family: Qwen25VL, sampling: SamplingParams, system: str
) -> None:
    prompts = [
        make_prompt(family, n, words=1 + 3 * n + s, seed=s, system=system) for n in range(4) for s in range(3)
    ]
    answers = family.generate(prompts, sampling)
    logits = sampled_rows(family, prompts, [ids for ids, _ in answers])
    worst = 0.0
    for row, (prompt, (ids, logprobs)) in enumerate(zip(prompts, answers, strict=True)):
        at = len(prompt.token_ids)
        learned = token_logprobs(logits[row, at - 1 : at - 1 + len(ids)], torch.from_numpy(ids), sampling)
        worst = max(worst, float((learned - torch.from_numpy(logprobs)).abs().max()))
        assert not set(ids.tolist()) & set(family.banned_token_ids)
    assert worst < 1e-4
    assert len({tuple(ids.tolist()) for ids, _ in answers}) > 3


def test_greedy_takes_the_most_probable_token(family: Qwen25VL) -> None:
    prompts = [make_prompt(family, n, words=2, seed=n) for n in range(3)]
    answers = family.generate(prompts, SamplingParams(temperature=0, max_new_tokens=5))
    logits = sampled_rows(family, prompts, [ids for ids, _ in answers])
    for row, (prompt, (ids, _)) in enumerate(zip(prompts, answers, strict=True)):
        at = len(prompt.token_ids) - 1
        assert logits[row, at : at + len(ids)].argmax(-1).tolist() == ids.tolist()


def test_a_seed_repeats_and_batches_keep_their_order(family: Qwen25VL) -> None:
    prompts = [make_prompt(family, n % 4, words=1 + 40 * (n % 2), seed=n) for n in range(8)]
    greedy = SamplingParams(temperature=0, max_new_tokens=6)
    alone = [family.generate([p], greedy)[0][0].tolist() for p in prompts]
    assert [ids.tolist() for ids, _ in family.generate(prompts, greedy)] == alone
    sampling = SamplingParams(max_new_tokens=6, seed=5)
    first, again = family.generate(prompts, sampling), family.generate(prompts, sampling)
    assert [i.tolist() for i, _ in first] == [i.tolist() for i, _ in again]
    other = family.generate(prompts, SamplingParams(max_new_tokens=6, seed=6))
    assert [i.tolist() for i, _ in first] != [i.tolist() for i, _ in other]


def test_rows_end_at_their_own_stops(family: Qwen25VL) -> None:
    prompts = [make_prompt(family, 0, words=n, seed=n) for n in range(1, 25)]
    free = family.generate(prompts, SamplingParams(temperature=1.0, max_new_tokens=24, seed=3))
    text = family.decode(free[0][0])[:4]
    sampling = SamplingParams(temperature=1.0, max_new_tokens=24, seed=3, stop=(text,))
    stopped = family.generate(prompts, sampling)
    shorter = family.decode(stopped[0][0])
    assert text in shorter and len(stopped[0][0]) < 24
    for ids, logprobs in stopped:
        assert len(ids) == len(logprobs) <= 24
        ended = int(ids[-1]) in family.stop_token_ids or text in family.decode(ids)
        assert ended or len(ids) == 24
        assert not set(ids[:-1].tolist()) & set(family.stop_token_ids)


def test_rows_finish_at_different_times_and_log_probs_stay_right() -> None:
    """Finished rows leave the cache: an eager stop token makes that happen at every step."""
    family = make_hot(Qwen25VL.build({"size": "tiny", "hidden_size": 64, "num_layers": 2}))
    with torch.no_grad():
        family._bans[family.stop_token_ids[0]] = 4.0  # about every sixth token stops
    prompts = [make_prompt(family, n % 3, words=n, seed=n) for n in range(1, 13)]
    sampling = SamplingParams(max_new_tokens=30, seed=0)
    answers = family.generate(prompts, sampling)
    assert len({len(ids) for ids, _ in answers}) > 3
    logits = sampled_rows(family, prompts, [ids for ids, _ in answers])
    for row, (prompt, (ids, logprobs)) in enumerate(zip(prompts, answers, strict=True)):
        at = len(prompt.token_ids) - 1
        learned = token_logprobs(logits[row, at : at + len(ids)], torch.from_numpy(ids), sampling)
        torch.testing.assert_close(learned, torch.from_numpy(logprobs), atol=1e-4, rtol=0)


def test_logits_ban_everything_that_is_no_answer(family: Qwen25VL) -> None:
    logits = family.logits(torch.zeros(2, 3, family.hidden_size))
    assert logits.shape == (2, 3, family.vocab_size) and logits.dtype == torch.float32
    banned = (logits[0, 0] == -torch.inf).nonzero()[:, 0].tolist()
    assert tuple(banned) == family.banned_token_ids
    names = family.tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|vision_start|>", "<|im_start|>"])
    assert set(names) <= set(banned)
    assert not set(banned) & {*family.stop_token_ids, *family.encode_answer("<think>x</think>")}


def test_images_must_match_their_placeholders(family: Qwen25VL) -> None:
    prompt, answer = some_segments(family)[2]
    short = Prompt(token_ids=prompt.token_ids, images=prompt.images[:1])
    with pytest.raises(ModelError, match=r"row 0 has \d+ image tokens but its images make \d+"):
        family.hidden(to_rows([[(short, answer)]], family.pad_token_id))
    with pytest.raises(ModelError, match="1 '<image>' but 0 images"):
        family.encode([Message(role="user", text="<image>")])
    with pytest.raises(ModelError, match="uint8 array"):
        family.encode([Message(role="user", text="<image>", images=(np.zeros((28, 28, 3)),))])  # type: ignore[arg-type]


def test_the_answer_depends_on_the_images(family: Qwen25VL) -> None:
    prompt = make_prompt(family, 2)
    blank = Prompt(token_ids=prompt.token_ids, images=tuple(np.zeros_like(i) for i in prompt.images))
    none = np.empty(0, dtype=np.int64)
    with torch.no_grad():
        seen = family.hidden(to_rows([[(prompt, none)], [(blank, none)]], family.pad_token_id))
    assert float((seen[0, -1] - seen[1, -1]).abs().max()) > 0.01


def test_half_precision_samples_and_learns_alike() -> None:
    """bfloat16 has 3 digits: log-probs agree to about one in a hundred, and losses stay float32."""
    family = make_hot(Qwen25VL.build({"size": "tiny", "dtype": "bfloat16", "hidden_size": 64}))
    prompts = [make_prompt(family, n, words=2 + n, seed=n) for n in range(3)]
    sampling = SamplingParams(max_new_tokens=6, seed=0)
    answers = family.generate(prompts, sampling)
    logits = sampled_rows(family, prompts, [ids for ids, _ in answers])
    assert logits.dtype == torch.float32
    errors = []
    for row, (prompt, (ids, logprobs)) in enumerate(zip(prompts, answers, strict=True)):
        at = len(prompt.token_ids) - 1
        learned = token_logprobs(logits[row, at : at + len(ids)], torch.from_numpy(ids), sampling)
        errors.append((learned - torch.from_numpy(logprobs)).abs().mean())
    assert float(max(errors)) < 0.15


def test_half_precision_weights_read_prompts_in_their_own() -> None:
    family = make_hot(Qwen25VL.build({"size": "tiny", "dtype": "bfloat16", "hidden_size": 64}))
    prompts = [make_prompt(family, n, words=4, seed=n, system="find the way " * 9) for n in range(3)]
    sampling = SamplingParams(max_new_tokens=3, seed=0)
    plain = family.generate(prompts, sampling)
    for (ids, logprobs), (own_ids, own_logprobs) in zip(
        plain, family.generate(prompts, sampling, precision="bfloat16"), strict=True
    ):
        np.testing.assert_array_equal(ids, own_ids)
        np.testing.assert_array_equal(logprobs, own_logprobs)


def test_many_pictures_are_read_as_a_few_are(family: Qwen25VL, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [make_prompt(family, 2, words=3, seed=n) for n in range(5)]
    none = np.empty(0, dtype=np.int64)
    rows = to_rows([[(p, none)] for p in prompts], family.pad_token_id)
    with torch.no_grad():
        together = family.embedded(rows)
        monkeypatch.setattr("rllib_vlm.models.qwen2_5_vl.vision._AT_ONCE", 1)
        torch.testing.assert_close(family.embedded(rows), together, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_prompts_read_in_bfloat16_are_about_the_same(
    family: Qwen25VL, monkeypatch: pytest.MonkeyPatch, fused: bool
) -> None:
    """The state behind a prompt is off by rounding, and what is written after it by no more."""
    if not fused:
        monkeypatch.setattr("rllib_vlm.models.qwen2_5_vl.fused._LARGEST", 0)
    prompts = [make_prompt(family, n, words=4 + 3 * n, seed=n) for n in range(3)]
    one = SamplingParams(temperature=1.0, max_new_tokens=1)
    exact = family.generate(prompts, one, [0, 1, 2])
    rounded = family.generate(prompts, one, [0, 1, 2], precision="bfloat16")
    gaps = [
        abs(float(logprobs[0] - others[0]))
        for (ids, logprobs), (other_ids, others) in zip(exact, rounded, strict=True)
        if ids[0] == other_ids[0]
    ]
    assert len(gaps) >= 2 and 0.0 < max(gaps) < 0.1


def test_fused_layers_sample_what_the_modules_do(family: Qwen25VL, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [make_prompt(family, n, words=4 + 3 * n, seed=n) for n in range(3)]
    greedy = SamplingParams(temperature=0.0, max_new_tokens=12)
    fused = family.generate(prompts, greedy)
    monkeypatch.setattr("rllib_vlm.models.qwen2_5_vl.fused._LARGEST", 0)
    for (ids, logprobs), (own_ids, own_logprobs) in zip(fused, family.generate(prompts, greedy), strict=True):
        np.testing.assert_array_equal(ids, own_ids)
        np.testing.assert_allclose(logprobs, own_logprobs, atol=1e-5)
