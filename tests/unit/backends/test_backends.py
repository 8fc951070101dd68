from __future__ import annotations

import numpy as np
import pytest
import torch

from rllib_vlm.backends.base import GenerationRequest
from rllib_vlm.backends.hf import HFBackend
from rllib_vlm.backends.scripted import ScriptedBackend
from rllib_vlm.errors import ModelError
from rllib_vlm.models.qwen2_5_vl import Qwen25VL
from rllib_vlm.types import Message, Prompt, SamplingParams

SMALL = {"size": "tiny", "hidden_size": 64, "num_layers": 2, "vision_depth": 1, "vision_hidden": 32}


@pytest.fixture(scope="module")
def family() -> Qwen25VL:
    return Qwen25VL.build(SMALL)


def request(family: Qwen25VL, text: str, **sampling: object) -> GenerationRequest:
    prompt = family.encode([Message(role="user", text=text)])
    return GenerationRequest(prompt=prompt, sampling=SamplingParams(**{"max_new_tokens": 6, **sampling}))  # type: ignore[arg-type]


def test_everything_that_waits_is_answered_in_batches(family: Qwen25VL) -> None:
    whole = HFBackend(family)
    parts = HFBackend(family, max_batch_size=2)
    texts = ["go", "look for the red mug", "stop", "a", "b c d e f"]
    answers = []
    for backend in (whole, parts):
        futures = [backend.submit(request(family, t, temperature=0.0)) for t in texts]
        assert not any(f.done() for f in futures)
        backend.poll()
        answers.append([f.result(timeout=0) for f in futures])
    for text, one, other in zip(texts, *answers, strict=True):
        [(ids, logprobs)] = family.generate(
            [request(family, text).prompt], SamplingParams(temperature=0.0, max_new_tokens=6)
        )
        assert one.token_ids.tolist() == other.token_ids.tolist() == ids.tolist()
        np.testing.assert_allclose(one.logprobs, logprobs, atol=1e-5)
        assert one.text == family.decode(ids)


def test_requests_of_different_sampling_wait_together(family: Qwen25VL) -> None:
    backend = HFBackend(family)
    short = backend.submit(request(family, "go", max_new_tokens=2))
    long = backend.submit(request(family, "go", max_new_tokens=9))
    seeded = [backend.submit(request(family, "go", seed=4)) for _ in range(2)]
    backend.poll()
    assert len(short.result(0).token_ids) <= 2 < len(long.result(0).token_ids) <= 9
    backend.poll()  # nothing waits: nothing happens
    one, other = (f.result(0).token_ids.tolist() for f in seeded)
    assert one == other  # a seed is of its request alone


def test_the_version_is_that_of_the_weights_that_answered(family: Qwen25VL) -> None:
    backend = HFBackend(Qwen25VL.build(SMALL))
    first = backend.submit(request(family, "go", temperature=0.0))
    backend.poll()
    weights = {name: torch.zeros_like(v) for name, v in family.model.state_dict().items()}
    backend.load_weights(weights, version=7)
    second = backend.submit(request(family, "go", temperature=0.0))
    backend.poll()
    assert (first.result(0).policy_version, second.result(0).policy_version) == (0, 7)
    # All weights zero: every allowed token is as likely as any other.
    allowed = family.vocab_size - len(family.banned_token_ids)
    np.testing.assert_allclose(second.result(0).logprobs, -np.log(allowed), atol=1e-5)


def test_foreign_weights_are_refused_whole(family: Qwen25VL) -> None:
    backend = HFBackend(Qwen25VL.build(SMALL))
    before = {name: v.clone() for name, v in backend.family.model.state_dict().items()}
    name = "model.language_model.norm.weight"
    with pytest.raises(ModelError, match=r"no weights 'model.language_model.norm.wight'.*Did you mean"):
        backend.load_weights(
            {name: torch.zeros(64), "model.language_model.norm.wight": torch.zeros(64)}, version=1
        )
    with pytest.raises(ModelError, match=r"have shape \(3,\), the model's \(64,\)"):
        backend.load_weights({name: torch.zeros(3)}, version=1)
    assert backend.version == 0
    assert torch.equal(backend.family.model.state_dict()[name], before[name])


def test_why_a_completion_ended(family: Qwen25VL) -> None:
    stop = family.stop_token_ids[0]
    family = Qwen25VL.build(SMALL)
    backend = HFBackend(family)
    family._bans[stop] = -torch.inf
    long = backend.submit(request(family, "go"))
    word = backend.submit(request(family, "go", seed=1, max_new_tokens=30, stop=("e",)))
    backend.poll()
    family._bans[stop] = 50.0
    ended = backend.submit(request(family, "go"))
    backend.poll()
    assert long.result(0).finish_reason == "length" and len(long.result(0).token_ids) == 6
    assert word.result(0).finish_reason == "stop" and "e" in word.result(0).text
    assert ended.result(0).finish_reason == "stop"
    assert ended.result(0).token_ids.tolist() == [stop] and ended.result(0).text == ""


def test_an_error_reaches_its_own_futures_only(family: Qwen25VL) -> None:
    backend = HFBackend(family)
    broken = Prompt(token_ids=np.array([family.image_token_id, 3]))
    bad = backend.submit(GenerationRequest(prompt=broken, sampling=SamplingParams(max_new_tokens=1)))
    good = backend.submit(request(family, "go"))
    backend.poll()
    assert isinstance(bad.exception(0), ModelError)
    assert len(good.result(0).token_ids) > 0


@pytest.mark.parametrize("kind", ["hf", "scripted"])
def test_closing_cancels_and_refuses(family: Qwen25VL, kind: str) -> None:
    backend = HFBackend(family) if kind == "hf" else ScriptedBackend(family, ["x"])
    cancelled = backend.submit(request(family, "go"))
    assert cancelled.cancel()
    waiting = backend.submit(request(family, "go"))
    backend.close()
    backend.poll()
    assert waiting.cancelled() and cancelled.cancelled()
    with pytest.raises(ModelError, match="closed"):
        backend.submit(request(family, "go"))


def test_a_script_speaks_in_turn_and_in_tokens(family: Qwen25VL) -> None:
    backend = ScriptedBackend(family, ["<answer>done</answer>", "no"])
    futures = [backend.submit(request(family, "go")) for _ in range(3)]
    backend.poll()
    completions = [f.result(0) for f in futures]
    assert [c.text for c in completions] == ["<answer>done</answer>", "no", "<answer>done</answer>"]
    assert completions[0].token_ids.tolist() == family.encode_answer("<answer>done</answer>").tolist()
    assert completions[0].finish_reason == "stop" and not completions[0].logprobs.any()


def test_a_script_may_look_at_the_prompt_and_may_fail(family: Qwen25VL) -> None:
    def answer(prompt: Prompt) -> str:
        if "fail" in prompt.text:
            raise ValueError("no such line")
        return "one two three four five six seven eight" if "long" in prompt.text else "done"

    backend = ScriptedBackend(family, answer)
    backend.load_weights({}, version=3)
    short, long, failed = (backend.submit(request(family, t)) for t in ("go", "long", "fail"))
    backend.poll()
    assert short.result(0).text == "done" and short.result(0).policy_version == 3
    assert long.result(0).finish_reason == "length" and len(long.result(0).token_ids) == 6
    assert isinstance(failed.exception(0), ValueError)


def test_impossible_arguments_are_refused(family: Qwen25VL) -> None:
    with pytest.raises(ModelError, match="at least one answer"):
        ScriptedBackend(family, [])
    with pytest.raises(ModelError, match="max_batch_size is 0"):
        HFBackend(family, max_batch_size=0)
    with pytest.raises(ModelError, match="'half'.*Known: float32, bfloat16, auto"):
        HFBackend(family, prompt_precision="half")
