"""One engine of its own behind the backend: exact log-probs, new weights in place, a dead engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from rllib_vlm import registry
from rllib_vlm.backends.base import GenerationRequest
from rllib_vlm.batching.packing import pack, to_torch
from rllib_vlm.batching.rows import rows_from_trajectory
from rllib_vlm.errors import ModelError
from rllib_vlm.models.base import TokenRows
from rllib_vlm.models.qwen2_5_vl import Qwen25VL
from rllib_vlm.models.sampling import token_logprobs
from rllib_vlm.types import Completion, Message, ParsedAction, Prompt, SamplingParams, Trajectory, Turn

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(600)]
PATIENCE_S = 240.0
MODEL = {"size": "tiny", "hidden_size": 64, "num_layers": 2, "seed": 3}


def build() -> Qwen25VL:
    family = Qwen25VL.build(MODEL)
    with torch.no_grad():  # far from uniform, so that errors of masks and positions show
        for parameter in family.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2.0)
    return family


@pytest.fixture(scope="module")
def family() -> Qwen25VL:
    return build()


@pytest.fixture(scope="module")
def backend(family: Qwen25VL, ray_cluster: None) -> Iterator[object]:
    engine = {"num_cpus": 0.5, "max_model_len": 512}
    backend = registry.resolve("backends", "vllm")(family, engine=engine)
    yield backend
    backend.close()


def prompt(family: Qwen25VL, text: str, images: int = 0, seed: int = 0) -> Prompt:
    rng = np.random.default_rng(seed)
    pictures = tuple(rng.integers(0, 255, (56, 28 * (2 + i), 3), dtype=np.uint8) for i in range(images))
    return family.encode([Message(role="user", text="<image>" * images + text, images=pictures)])


def answers(backend, requests: list[GenerationRequest]) -> list[Completion]:
    futures = [backend.submit(request) for request in requests]
    end = time.monotonic() + PATIENCE_S
    while not all(future.done() for future in futures):
        assert time.monotonic() < end, "requests were not answered"
        backend.poll(timeout_s=1.0)
    return [future.result() for future in futures]


def learners_logprobs(
    family: Qwen25VL, asked: Prompt, said: Completion, sampling: SamplingParams
) -> np.ndarray:
    """As the learner computes them: packed rows through `hidden`, `logits` and the sampling distribution."""
    turn = Turn(prompt=asked, completion=said, parsed=ParsedAction(valid=True), reward=0.0)
    (row,) = rows_from_trajectory(
        Trajectory(turns=(turn,), group="", terminated=True, truncated=False, success=False)
    )
    batch = to_torch(pack([row], max_tokens=len(row)), torch.device("cpu"))
    rows = TokenRows(**{n: batch[n] for n in ("token_ids", "segment_ids", "images", "image_sizes")})
    start = len(asked.token_ids)
    with torch.no_grad():
        logits = family.logits(family.hidden(rows)[0, start - 1 : start - 1 + len(said.token_ids)])
        return token_logprobs(logits, torch.from_numpy(said.token_ids), sampling).numpy()


SAMPLINGS = {
    "warm": SamplingParams(temperature=0.7, max_new_tokens=24),
    "hot": SamplingParams(temperature=1.5, max_new_tokens=24),
    "nucleus": SamplingParams(temperature=0.7, top_p=0.8, max_new_tokens=24),
    "greedy": SamplingParams(temperature=0.0, max_new_tokens=12),
}


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_logprobs_are_the_learners(backend, family: Qwen25VL, kind: str):
    sampling = SAMPLINGS[kind]
    asked = [
        prompt(family, "go to the mug " * n, images, seed=n) for n, images in ((1, 0), (4, 0), (2, 1), (7, 3))
    ]
    requests = [  # that leave the batch at different steps
        GenerationRequest(prompt=p, sampling=replace(sampling, max_new_tokens=length))
        for p in asked
        for length in (6, sampling.max_new_tokens)
    ]
    seen: list[float] = []
    for request, completion in zip(requests, answers(backend, requests), strict=True):
        expected = learners_logprobs(family, request.prompt, completion, sampling)
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)
        seen += expected.tolist()
        assert not set(completion.token_ids.tolist()) & set(family.banned_token_ids)
    assert np.ptp(seen) > 0.1, "a model that knows nothing would pass any test"


def test_the_engine_remembers_a_conversation(backend, family: Qwen25VL):
    before = dict(backend.counts())
    for turns in (4, 5):
        text = "walk along the long corridor and look for the kitchen " * turns
        request = GenerationRequest(prompt=prompt(family, text, 1), sampling=SAMPLINGS["warm"], session="a")
        (said,) = answers(backend, [request])
        assert len(said.token_ids)
    after = backend.counts()
    assert after["num_prefill_tokens_reused"] > before["num_prefill_tokens_reused"]


def test_a_stop_string_ends_an_answer_and_stays_in_it(backend, family: Qwen25VL):
    sampling = SamplingParams(temperature=1.5, max_new_tokens=200, stop=("e",))
    asked = [prompt(family, "go", 1, seed=i) for i in range(4)]
    said = answers(backend, [GenerationRequest(prompt=p, sampling=sampling) for p in asked])
    stopped = [c for c in said if c.finish_reason == "stop" and "e" in c.text]
    assert stopped
    for completion in stopped:
        assert "e" not in family.decode(completion.token_ids[:-1])


def test_a_prompt_that_is_too_long_is_refused_and_no_other(backend, family: Qwen25VL):
    requests = [
        GenerationRequest(prompt=prompt(family, t), sampling=SAMPLINGS["warm"]) for t in ("go " * 2000, "go")
    ]
    refused, fine = [backend.submit(request) for request in requests]
    end = time.monotonic() + PATIENCE_S
    while not (refused.done() and fine.done()):
        assert time.monotonic() < end
        backend.poll(1.0)
    with pytest.raises(ModelError, match="refuses"):
        refused.result()
    assert len(fine.result().token_ids)


def test_what_is_cancelled_is_not_waited_for(backend, family: Qwen25VL):
    request = GenerationRequest(prompt=prompt(family, "go"), sampling=SamplingParams(max_new_tokens=400))
    futures = [backend.submit(request) for _ in range(3)]
    assert all(future.cancel() for future in futures)
    backend.poll()  # would wait for an answer, were there one to come
    assert len(answers(backend, [GenerationRequest(prompt=prompt(family, "on"), sampling=SAMPLINGS["warm"])]))


def test_new_weights_are_in_place_with_their_version(backend, family: Qwen25VL):
    sampling = SAMPLINGS["greedy"]
    asked = [prompt(family, "walk along the corridor " * 8, images) for images in (0, 2)]
    requests = [GenerationRequest(prompt=p, sampling=sampling) for p in asked]
    first = answers(backend, requests)
    old = {name: tensor.clone() for name, tensor in family.model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    new = {
        n: t + 0.05 * torch.randn(t.shape, generator=generator) for n, t in old.items() if "lm_head" not in n
    }
    backend.load_weights(new, version=7)
    second = answers(backend, requests)
    assert [c.policy_version for c in second] == [7, 7]
    for one, said, before in zip(asked, second, first, strict=True):
        assert not np.array_equal(said.logprobs, before.logprobs)
        # The prompts were in the prefix cache and their pictures in the encoder's, with the old weights.
        np.testing.assert_allclose(said.logprobs, learners_logprobs(family, one, said, sampling), atol=1e-4)
    backend.load_weights(old, version=8)
    third = answers(backend, requests)
    assert [c.policy_version for c in third] == [8, 8]
    for before, after in zip(first, third, strict=True):
        np.testing.assert_array_equal(before.token_ids, after.token_ids)
        np.testing.assert_allclose(before.logprobs, after.logprobs, atol=1e-5)


def engine_process() -> psutil.Process:
    """Of this test's own cluster, and no other that is up on the machine."""
    processes = psutil.Process().children(recursive=True)
    (found,) = [p for p in processes if " ".join(p.cmdline()).startswith("ray::VLLMEngine")]
    return found


def test_a_dead_engine_comes_back_with_the_present_weights(backend, family: Qwen25VL):
    changed = {n: t * 1.1 for n, t in family.model.state_dict().items() if "lm_head" not in n}
    backend.load_weights(changed, version=9)
    requests = [
        GenerationRequest(prompt=prompt(family, "go", 1, seed=i), sampling=SamplingParams(max_new_tokens=300))
        for i in range(6)
    ]
    futures = [backend.submit(request) for request in requests]
    engine_process().kill()
    end = time.monotonic() + PATIENCE_S
    while not all(future.done() for future in futures):
        assert time.monotonic() < end, "the turns were not asked again"
        backend.poll(timeout_s=1.0)
    assert backend.counts()["num_retried_turns"] == len(requests)
    for request, future in zip(requests, futures, strict=True):
        said = future.result()
        assert said.policy_version == 9
        expected = learners_logprobs(family, request.prompt, said, request.sampling)
        np.testing.assert_allclose(said.logprobs, expected, atol=1e-4)
