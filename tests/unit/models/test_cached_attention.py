"""Our kernels and torch's attention say the same, and a batch's cache holds what it should in either way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rllib_vlm.models import cached_attention
from rllib_vlm.models.cached_attention import Buffers, available
from rllib_vlm.models.qwen2_5_vl import Qwen25VL
from rllib_vlm.models.qwen2_5_vl.cache import Cache, InPlace, InSlots, cache_of
from rllib_vlm.models.sessions import Past, SessionCache
from rllib_vlm.types import Message, SamplingParams

needs_kernels = pytest.mark.skipif(
    not available(32, torch.zeros(1)), reason="the kernels were not compiled: there is no compiler here"
)


@pytest.fixture(params=["kernels", "torch"])
def attention(request) -> Iterator[type[Cache]]:
    """What computes, which is a matter of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if request.param == "kernels" else 3)
    if request.param == "kernels" and not available(32, torch.zeros(1)):
        pytest.skip("the kernels were not compiled: there is no compiler here")
    yield InPlace if request.param == "kernels" else InSlots
    torch.set_num_threads(threads)


def expected(q: Tensor, pairs: Tensor, seen: int) -> Tensor:
    """[H, L, d] of one row's queries [H, L, d], of the last L of the first `seen` tokens of [2 G, S, d]."""
    groups, (heads, tokens, _) = len(pairs) // 2, q.shape
    k, v = (x.repeat_interleave(heads // groups, 0) for x in (pairs[:groups, :seen], pairs[groups:, :seen]))
    slots = torch.arange(seen)
    mask = slots <= slots[seen - tokens :, None]
    return F.scaled_dot_product_attention(q.double(), k.double(), v.double(), mask).float()


@needs_kernels
@pytest.mark.parametrize(
    ("heads", "groups", "width"), [(4, 2, 32), (7, 1, 32), (3, 3, 64), (6, 2, 96), (2, 1, 128)]
)
@pytest.mark.parametrize("tokens", [1, 2, 5, 6, 7, 40])
def test_the_kernels_say_what_torch_says(heads: int, groups: int, width: int, tokens: int):
    random = torch.Generator().manual_seed(tokens)
    used = [0, 1, 5, 31, 32, 33, 200]
    count = torch.tensor([tokens, tokens, 1, tokens, tokens // 2, tokens, tokens])
    pairs = [torch.randn(3, 2 * groups, n + tokens + 2, width, generator=random) for n in used]
    before = [own.clone() for own in pairs]
    # Strides as projections leave them: tokens before heads, the three next to each other.
    qkv = torch.randn(len(used), tokens, heads + 2 * groups, width, generator=random) * 2
    q, k, v = qkv.transpose(1, 2).split((heads, groups, groups), 1)
    buffers = Buffers(pairs, used)
    out = buffers.attend(1, q, k, v, count)
    last = torch.stack([q[row, :, max(n - 1, 0)] for row, n in enumerate(count.tolist())])[:, :, None]
    of_last = buffers.attend(1, last, k, v, count)
    for row, (at, new) in enumerate(zip(used, count.tolist(), strict=True)):
        own = before[row][1]
        own[:groups, at : at + new], own[groups:, at : at + new] = k[row, :, :new], v[row, :, :new]
        torch.testing.assert_close(
            pairs[row], before[row], rtol=0, atol=0
        )  # other layers and slots untouched
        if new:
            right = expected(q[row, :, :new], own, at + new)
            torch.testing.assert_close(out[row, :, :new], right, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(of_last[row, :, 0], right[:, -1], atol=1e-5, rtol=1e-5)


@needs_kernels
def test_a_library_that_is_not_whole_is_not_loaded(tmp_path: Path):
    """In processes of their own: torn libraries that are loaded end them."""
    [library] = Path(cached_attention.__file__).parent.glob("_cached_attention*.so")
    content = library.read_bytes()
    script = """if True:
        import sys
        from pathlib import Path
        from rllib_vlm.models.cached_attention import load
        print([load(path) is not None for path in sorted(Path(sys.argv[1]).iterdir())])"""
    for i, size in enumerate((0, 40, 1000, 20_000, len(content) - 1, len(content))):
        (tmp_path / f"{i}.so").write_bytes(content[:size])
    (tmp_path / "6.so").write_bytes(b"text" * 100)
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert ended.stdout.split("[")[1] == "False, False, False, False, False, True, False]\n"


@needs_kernels
def test_the_kernels_refuse_what_does_not_fit_and_hide_no_number_that_is_none():
    q = torch.randn(1, 2, 3, 32)
    with pytest.raises(RuntimeError, match="a buffer is too small"):
        Buffers([torch.zeros(1, 2, 4, 32)], [2]).attend(0, q, q[:, :1], q[:, :1], torch.tensor([3]))
    with pytest.raises(RuntimeError, match="a buffer is too small"):
        Buffers([torch.zeros(1, 2, 9, 32)], [2]).attend(0, q, q[:, :1], q[:, :1], torch.tensor([4]))
    with pytest.raises(RuntimeError, match="no queries"):
        Buffers([torch.zeros(1, 2, 9, 32)], [2]).attend(0, q[:, :, :2], q[:, :1], q[:, :1], torch.tensor([3]))
    far = q * torch.tensor([1e4, -1e4])[:, None, None]  # scores beyond what an exponential holds
    assert (
        Buffers([torch.zeros(1, 2, 4, 32)], [0])
        .attend(0, far, q[:, :1], q[:, :1], torch.tensor([3]))
        .isfinite()
        .all()
    )
    for tokens in (1, 3):
        broken = q[:, :, :tokens].clone()
        broken[0, 0, 0, 5] = torch.nan
        out = Buffers([torch.zeros(1, 2, 4, 32)], [0]).attend(
            0, broken, q[:, :1, :tokens], q[:, :1, :tokens], torch.tensor([tokens])
        )
        assert out[0, 0, 0].isnan().all() and out[0, 1].isfinite().all()


def test_a_cache_goes_on_from_pasts_and_gives_them_back(family: Qwen25VL, attention: type[Cache]):
    language, random = family.model.model.language_model, torch.Generator().manual_seed(0)
    pasts = [
        Past(torch.randn(4, 4, 20, 32, generator=random), 9),
        None,
        Past(torch.randn(4, 4, 7, 32, generator=random), 7),
    ]
    whole = [torch.zeros(4, 4, 0, 32) if p is None else p.pairs[:, :, : p.tokens].clone() for p in pasts]
    cache = cache_of(language, pasts, [14, 14, 14], torch.zeros(1), lasting=True)
    assert isinstance(cache, attention)
    rows = [0, 1, 2]
    for count in ([5, 3, 4], [1, 1, 1], [1, 0], [1, 1]):
        if len(count) < len(rows):
            rows = [0, 2]
            cache.select([0, 2])
        cache.expect(torch.tensor(count), max(count))
        for row, new in zip(rows, count, strict=True):
            whole[row] = torch.cat([whole[row], torch.zeros(4, 4, new, 32)], 2)
        for layer in range(4):
            q = torch.randn(len(count), 4, max(count), 32, generator=random)
            k, v = torch.randn(2, len(count), 2, max(count), 32, generator=random)
            out = cache.attend(layer, q, k, v)
            for at, (row, new) in enumerate(zip(rows, count, strict=True)):
                own = whole[row][layer]
                own[:, own.shape[1] - new :] = torch.cat([k[at, :, :new], v[at, :, :new]])
                if new:
                    right = expected(q[at, :, :new], own, own.shape[1])
                    torch.testing.assert_close(out[at, :, :new], right, atol=1e-5, rtol=1e-5)
        cache.done()
    for at, row in enumerate(rows):
        memory = cache.memory(at)
        assert memory.tokens == whole[row].shape[2]
        torch.testing.assert_close(memory.pairs[:, :, : memory.tokens], whole[row], rtol=0, atol=0)


def conversation(family: Qwen25VL, cache: SessionCache, turns: int, names: list[str]) -> list[np.ndarray]:
    """Log-probs of all answers; the last turn forgets the first question."""
    rng = np.random.default_rng(0)
    chats = [[Message(role="system", text="a robot " * (i + 1))] for i, _ in enumerate(names)]
    found = []
    for turn in range(turns):
        for i, chat in enumerate(chats):
            frame = rng.integers(0, 256, (56, 56, 3), dtype=np.uint8)
            chat.append(Message(role="user", text="<image>go" + " on" * (3 * i + turn), images=(frame,)))
            if turn == turns - 1:
                del chat[1:3]
        sampling = SamplingParams(max_new_tokens=7, seed=turn)
        answers = family.generate(
            [family.encode(chat) for chat in chats], sampling, cache=cache, sessions=names
        )
        found += [logprobs for _, logprobs in answers]
        for chat, (ids, _) in zip(chats, answers, strict=True):
            chat.append(Message(role="assistant", text=family.decode(ids), token_ids=ids))
    return found


def test_conversations_are_the_same_with_and_without_a_cache(family: Qwen25VL, attention: type[Cache]):
    plain = conversation(family, SessionCache(), 4, ["a", "b", "c"])
    kept = SessionCache(64)
    for own, right in zip(conversation(family, kept, 4, ["a", "b", "c"]), plain, strict=True):
        np.testing.assert_allclose(own, right, atol=1e-4)
    assert kept.reused > kept.computed / 2
    # Two turns of one conversation in a batch do not write over each other's past.
    for own, right in zip(conversation(family, SessionCache(64), 4, ["a", "a", "a"]), plain, strict=True):
        np.testing.assert_allclose(own, right, atol=1e-4)


def test_what_is_kept_counts_no_room_for_answers_that_were_shorter(family: Qwen25VL, attention: type[Cache]):
    prompt, cache = family.encode([Message(role="user", text="go")]), SessionCache(64)
    [(three, _)] = family.generate([prompt], SamplingParams(temperature=0, max_new_tokens=3))
    stop = family.decode(three)
    sampling = SamplingParams(temperature=0, max_new_tokens=900, stop=(stop,))
    [(ids, _)] = family.generate([prompt], sampling, cache=cache, sessions=["a"])
    tokens = len(prompt.token_ids) + len(ids)
    assert len(ids) <= 3 and cache.used_mib * 2**20 <= (tokens * 3 / 2 + 16) * 4 * 4 * 32 * 4


def test_a_turn_that_fails_leaves_nothing_wrong_behind(family: Qwen25VL, attention: type[Cache]):
    cache, sampling = SessionCache(64), SamplingParams(max_new_tokens=4, seed=0)
    long, other = (
        family.encode([Message(role="user", text="go to the mug " + word * 9)])
        for word in ("left ", "right ")
    )
    [first] = family.generate([long], sampling, cache=cache, sessions=["a"])

    def fail(states: Tensor) -> Tensor:
        raise ValueError("no logits")

    right = family.logits
    try:
        family.logits = fail  # type: ignore[method-assign]
        with pytest.raises(ValueError, match="no logits"):
            family.generate([other], sampling, cache=cache, sessions=["a"])
    finally:
        family.logits = right  # type: ignore[method-assign]
    [again] = family.generate([long], sampling, cache=cache, sessions=["a"])
    np.testing.assert_allclose(again[1], first[1], atol=1e-4)
