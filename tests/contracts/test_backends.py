"""What every generation backend of the registry promises."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rllib_vlm import registry
from rllib_vlm.backends.base import GenerationBackend, GenerationRequest
from rllib_vlm.errors import MissingExtraError, RLlibVLMError
from rllib_vlm.models.qwen2_5_vl import Qwen25VL
from rllib_vlm.types import Message, SamplingParams

# What a backend needs beside the family.
ARGUMENTS: dict[str, tuple[Any, ...]] = {"scripted": (["<answer>done</answer>"],)}
ACTORS = {"vllm"}  # backends whose engines are actors of a cluster
PATIENCE_S = 240.0


@pytest.fixture(scope="module")
def family() -> Qwen25VL:
    return Qwen25VL.build({"size": "tiny", "hidden_size": 64, "num_layers": 2})


# Those of which a test run is their own: `make test-engines`.
BACKENDS = [
    pytest.param(name, marks=pytest.mark.vllm) if name == "vllm" else name
    for name in registry.names("backends")
]


def make(name: str, request: pytest.FixtureRequest, family: Qwen25VL) -> Any:
    try:
        kind = registry.resolve("backends", name)
    except MissingExtraError as error:
        pytest.skip(str(error))
    if name in ACTORS:
        request.getfixturevalue("ray_cluster")
    return kind(family, *ARGUMENTS.get(name, ()))


@pytest.fixture(scope="module", params=BACKENDS)
def shared_backend(request: pytest.FixtureRequest, family: Qwen25VL) -> Any:
    """One for all tests of it but the last: an engine takes long to start."""
    backend = make(request.param, request, family)
    yield backend
    backend.close()


@pytest.fixture
def backend(shared_backend: Any, family: Qwen25VL) -> Any:
    """With the weights of version 0, whatever the test before loaded."""
    shared_backend.load_weights(family.model.state_dict(), version=0)
    return shared_backend


def ask(family: Qwen25VL, text: str, images: int = 0) -> GenerationRequest:
    pictures = tuple(np.full((56, 56, 3), 40 * i, dtype=np.uint8) for i in range(images))
    message = Message(role="user", text="<image>" * images + text, images=pictures)
    return GenerationRequest(
        prompt=family.encode([message]), sampling=SamplingParams(temperature=0.7, max_new_tokens=9)
    )


def wait(backend: GenerationBackend, futures: list[Any]) -> list[Any]:
    end = time.monotonic() + PATIENCE_S
    while not all(f.done() for f in futures):
        assert time.monotonic() < end, "requests were not answered"
        backend.poll(timeout_s=1.0)
    return [f.result() for f in futures]


def test_every_request_is_answered_with_exact_tokens(backend: GenerationBackend, family: Qwen25VL) -> None:
    futures = [backend.submit(ask(family, "go " * (1 + i), images=i % 3)) for i in range(5)]
    for completion in wait(backend, futures):
        ids = completion.token_ids
        assert ids.dtype == np.int64 and completion.logprobs.dtype == np.float32
        assert 0 < len(ids) == len(completion.logprobs) <= 9
        assert (completion.logprobs <= 0).all()
        assert completion.text == family.decode(ids)
        assert not set(ids.tolist()) & set(family.banned_token_ids)
        stopped = int(ids[-1]) in family.stop_token_ids
        assert completion.finish_reason == ("stop" if stopped else "length")


def test_completions_carry_the_version_of_their_weights(backend: GenerationBackend, family: Qwen25VL) -> None:
    before = wait(backend, [backend.submit(ask(family, "go"))])
    backend.load_weights(family.model.state_dict(), version=12)
    after = wait(backend, [backend.submit(ask(family, "go"))])
    assert (before[0].policy_version, after[0].policy_version) == (0, 12)


def test_conversations_go_on_and_end(backend: GenerationBackend, family: Qwen25VL) -> None:
    before = dict(backend.counts())
    for text in ("go", "go on", "stop"):
        asked = [replace(ask(family, text, images=1), session=name) for name in ("one", "other")]
        assert all(len(c.token_ids) for c in wait(backend, [backend.submit(request) for request in asked]))
    backend.end_session("one")
    backend.end_session("nobody's")
    assert wait(backend, [backend.submit(replace(ask(family, "go"), session="one"))])
    after = backend.counts()
    assert after.keys() == before.keys() and all(after[name] >= before[name] for name in after)


def test_a_seed_gives_the_same_answer_whatever_is_asked_beside_it(
    backend: GenerationBackend, family: Qwen25VL
) -> None:
    def seeded(text: str, seed: int) -> GenerationRequest:
        request = ask(family, text)
        return replace(request, sampling=replace(request.sampling, seed=seed))

    def answers(*requests: GenerationRequest) -> list[list[int]]:
        completions = wait(backend, [backend.submit(request) for request in requests])
        return [completion.token_ids.tolist() for completion in completions]

    together = answers(*(seeded("go " * (1 + seed % 3), seed) for seed in range(6)))
    alone = [answers(seeded("go " * (1 + seed % 3), seed))[0] for seed in range(6)]
    assert together == alone


def test_polling_with_nothing_to_do_returns(backend: GenerationBackend) -> None:
    backend.poll(timeout_s=0.1)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_closed_backend_takes_no_more(name: str, request: pytest.FixtureRequest, family: Qwen25VL) -> None:
    backend = make(name, request, family)
    backend.close()
    with pytest.raises(RLlibVLMError, match="closed"):
        backend.submit(ask(family, "go"))
