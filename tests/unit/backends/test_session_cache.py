"""With a session cache the `hf` backend says what it says without one, and computes less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from rllib_vlm.backends.base import GenerationRequest
from rllib_vlm.backends.hf import HFBackend
from rllib_vlm.core.engines.base import EngineSettings
from rllib_vlm.core.engines.plain import PlainEngine
from rllib_vlm.models.qwen2_5_vl import Qwen25VL
from rllib_vlm.types import Completion, Message, SamplingParams

SMALL = {"size": "tiny", "hidden_size": 64, "num_layers": 2, "vision_depth": 1, "vision_hidden": 32}
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=7)
SYSTEM = Message(role="system", text="you are a robot in a house with several rooms. look, and go on. " * 2)
Chat = list[Message]


def build() -> Qwen25VL:
    """Weights scaled up, so that what was said and seen decides what is said next."""
    family = Qwen25VL.build(SMALL)
    with torch.no_grad():
        for parameter in family.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
    return family


@pytest.fixture(scope="module")
def family() -> Qwen25VL:
    return build()


def picture(rng: np.random.Generator) -> np.ndarray:
    height, width = 28 * rng.integers(1, 4, 2)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def user(rng: np.random.Generator, images: int) -> Message:
    pictures = tuple(picture(rng) for _ in range(rng.integers(0, images + 1)))
    words = " ".join(rng.choice(["go", "to", "the", "red", "mug", "stop"], rng.integers(1, 25)))
    return Message(role="user", text="<image>" * len(pictures) + words, images=pictures)


def ask(
    backend: HFBackend,
    chats: Sequence[Chat],
    sampling: SamplingParams = GREEDY,
    names: Sequence[str] | None = None,
) -> list[Completion]:
    names = names or [f"chat {i}" for i in range(len(chats))]
    futures = [
        backend.submit(GenerationRequest(prompt=backend.family.encode(chat), sampling=sampling, session=name))
        for chat, name in zip(chats, names, strict=True)
    ]
    backend.poll()
    return [future.result(0) for future in futures]


def same(answers: Sequence[Completion], others: Sequence[Completion]) -> None:
    for answer, other in zip(answers, others, strict=True):
        np.testing.assert_array_equal(answer.token_ids, other.token_ids)
        np.testing.assert_allclose(answer.logprobs, other.logprobs, atol=1e-4)


def said(answer: Completion) -> Message:
    return Message(role="assistant", text=answer.text, token_ids=answer.token_ids)


def computed(backend: HFBackend) -> int:
    return backend.counts()["num_prefill_tokens"]


@pytest.mark.parametrize("layers", ["fused", "modules"])
@pytest.mark.parametrize("images", [0, 2])
def test_conversations_go_on_as_without_a_cache(
    family: Qwen25VL, images: int, layers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conversations that begin at different times and lengths, whose answers end at different steps."""
    if layers == "modules":
        monkeypatch.setattr("rllib_vlm.models.qwen2_5_vl.fused._LARGEST", 0)
    eager = family._bans.clone()
    eager[family.stop_token_ids[0]] = 4.0  # answers end at different steps
    monkeypatch.setattr(family, "_bans", eager)
    plain, cached = HFBackend(family), HFBackend(family, session_cache_mib=64)
    rng = np.random.default_rng(images)
    chats: list[Chat] = []
    lengths = set()
    for turn in range(5):
        chats += [[SYSTEM] for _ in range(1 + turn % 2)]
        for chat in chats:
            chat.append(user(rng, images))
        answers = ask(cached, chats)
        same(answers, ask(plain, chats))
        lengths |= {len(answer.token_ids) for answer in answers}
        for chat, answer in zip(chats, answers, strict=True):
            chat.append(said(answer))
    assert len(lengths) > 2
    assert computed(cached) < 0.7 * computed(plain)
    assert sum(plain.counts().values()) == sum(cached.counts().values())


def test_histories_that_drop_and_rewrite_find_less_and_nothing_wrong(family: Qwen25VL) -> None:
    plain, cached = HFBackend(family), HFBackend(family, session_cache_mib=64)
    rng = np.random.default_rng(3)
    first, second, third = (Message(role="user", text="<image>go", images=(picture(rng),)) for _ in range(3))
    answer = Message(role="assistant", text="done")
    reused = []
    for chat in (
        [SYSTEM, first, answer, second],
        [SYSTEM, first, answer, second, answer, third],
        [SYSTEM, second, answer, third],  # the oldest turn is dropped
        [SYSTEM, replace(second, text="go", images=()), answer, third],  # and the next one loses its picture
        [SYSTEM, replace(second, text="go", images=()), answer, replace(third, images=first.images)],
        [first],  # without the system message too
    ):
        before = cached.counts()["num_prefill_tokens_reused"]
        same(ask(cached, [chat]), ask(plain, [chat]))
        reused.append(cached.counts()["num_prefill_tokens_reused"] - before)
    system = len(family.encode([SYSTEM, Message(role="user", text="")]).token_ids)
    assert reused[0] == 0 and reused[1] > system
    assert 0 < reused[2] < system < reused[1] and reused[4] > reused[3] > 0
    assert reused[5] < 10


def test_sessions_of_one_name_and_none(family: Qwen25VL) -> None:
    """Two prompts of one conversation in a batch, and prompts that are nobody's."""
    plain, cached = HFBackend(family), HFBackend(family, session_cache_mib=64)
    rng = np.random.default_rng(4)
    chat: Chat = [SYSTEM, user(rng, 1)]
    same(ask(cached, [chat, chat], names=["a", "a"]), ask(plain, [chat, chat]))
    forks = [[*chat, Message(role="user", text=text)] for text in ("left", "right, then on")]
    same(ask(cached, forks, names=["a", "a"]), ask(plain, forks))
    prompt = family.encode(chat)
    nobody = cached.submit(GenerationRequest(prompt=prompt, sampling=GREEDY))
    cached.poll()
    assert len(nobody.result(0).token_ids) > 0 and len(cached.cache) == 1


def test_new_weights_answer_from_nothing_old() -> None:
    cached = HFBackend(build(), session_cache_mib=64)
    chat: Chat = [SYSTEM, Message(role="user", text="go")]
    rng = np.random.default_rng(6)
    for change in ("load", "in place", "a learner's step"):
        [answer] = ask(cached, [chat])
        chat += [said(answer), user(rng, 0)]
        parameters = list(cached.family.model.parameters())
        if change == "load":
            weights = {n: 0.9 * w for n, w in cached.family.model.state_dict().items()}
            cached.load_weights(weights, version=1)
            assert len(cached.cache) == 0
        else:  # as what shares the weights would, with no word to the backend
            for parameter in parameters:
                parameter.grad = parameter.detach().sign()
            if change == "in place":
                torch.optim.SGD(parameters, lr=1e-3).step()
            else:
                settings, device = EngineSettings(lr=1e-3), torch.device("cpu")
                PlainEngine(cached.family.model, settings, device=device, rank=0, world=1).step(
                    lambda _: True
                )
        before = cached.counts()["num_prefill_tokens_reused"]
        same(ask(cached, [chat]), ask(HFBackend(cached.family), [chat]))
        assert cached.counts()["num_prefill_tokens_reused"] == before


def test_a_tight_budget_costs_time_and_nothing_else(family: Qwen25VL) -> None:
    """Room for about two of five conversations."""
    plain = HFBackend(family)
    cached = HFBackend(family, session_cache_mib=0.15)
    rng = np.random.default_rng(7)
    chats: list[Chat] = [[SYSTEM] for _ in range(5)]
    for _ in range(3):
        for chat in chats:
            chat.append(user(rng, 1))
        answers = ask(cached, chats)
        same(answers, ask(plain, chats))
        assert len(cached.cache) > 0 and cached.cache.used_mib <= 0.15
        for chat, answer in zip(chats, answers, strict=True):
            chat.append(said(answer))
    assert len(cached.cache) < 5


def test_the_end_of_a_session_frees_it(family: Qwen25VL) -> None:
    backend = HFBackend(family, session_cache_mib=64)
    ask(backend, [[SYSTEM], [SYSTEM]], names=["a", "b"])
    assert len(backend.cache) == 2
    backend.end_session("a")
    backend.end_session("a")
    assert len(backend.cache) == 1
    backend.close()
    assert len(backend.cache) == 0 and backend.cache.used_mib == 0
