from __future__ import annotations

import numpy as np
import pytest
import torch
from rows import random_rows
from tiny import MODEL

from rllib_vlm.batching.packing import pack, to_torch
from rllib_vlm.core.columns import VLMColumns
from rllib_vlm.core.rl_module import VLMRLModule, _rows
from rllib_vlm.errors import ModelError
from rllib_vlm.models.sampling import token_logprobs
from rllib_vlm.types import Message, SamplingParams


def make(*, inference_only=False, **config):
    return VLMRLModule(
        model_config={"family": "qwen2_5_vl", **MODEL, **config},
        observation_space=None,
        action_space=None,
        inference_only=inference_only,
    )


@pytest.fixture(scope="module")
def module():
    return make(value_head=True)


def test_log_probs_and_entropy_are_those_of_the_sampling_distribution(module):
    rows = random_rows(module.family)
    batch = to_torch(pack(rows, max_tokens=200))
    sampling = SamplingParams(temperature=0.6, top_p=0.9)
    with torch.no_grad():
        out = module.forward_train(batch, with_entropy=True, sampling=sampling)
        hidden = module.family.hidden(_rows(batch))
    mask = batch["turn_ids"] >= 0
    b, t = 0, int(mask[0].nonzero()[0, 0])
    logits = module.family.logits(hidden[b, t - 1])
    expected = token_logprobs(logits, batch["token_ids"][b, t], sampling)
    torch.testing.assert_close(out[VLMColumns.LOGPROBS][b, t], expected)
    assert (out[VLMColumns.LOGPROBS][~mask] == 0).all()
    assert (out[VLMColumns.ENTROPY][mask] > 0).all()


def test_bfloat16_stays_near_and_its_log_probs_are_float32(module):
    batch = to_torch(pack(random_rows(module.family), max_tokens=200))
    exact = module.forward_train(batch)[VLMColumns.LOGPROBS]
    rough = module.forward_train(batch, precision="bfloat16")[VLMColumns.LOGPROBS]
    assert rough.dtype == torch.float32
    assert 0.0 < (rough - exact).abs().max() < 0.1
    rough.sum().backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    assert gradients and all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    module.zero_grad(set_to_none=True)


def scores_and_gradients(module, batch, sampling):
    out = module.forward_train(batch, with_entropy=True, sampling=sampling)
    loss = sum(out[name].square().sum() for name in (VLMColumns.LOGPROBS, VLMColumns.ENTROPY))
    module.zero_grad(set_to_none=True)
    loss.backward()
    found = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    return out, found


@pytest.mark.parametrize("way", ["tiles", "tiles, some kept", "chunks"])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (0.6, 0.9)])
def test_however_logits_are_cut_scores_and_gradients_are_the_same(
    module, monkeypatch, way, temperature, top_p
):
    from rllib_vlm.core import scoring

    batch = to_torch(pack(random_rows(module.family), max_tokens=200))
    sampling = SamplingParams(temperature=temperature, top_p=top_p)
    whole, expected = scores_and_gradients(module, batch, sampling)
    monkeypatch.setattr(scoring, "_SMALL_LOGITS_BYTES", 0 if way == "tiles" else 20_000)
    monkeypatch.setattr(scoring, "_NUCLEUS_BYTES", 0)
    monkeypatch.setattr(module, "_chunk", 2)
    if way == "chunks":  # as where the output layer has adapters
        monkeypatch.setattr(type(module.family), "output_weight", None)
    pieces, found = scores_and_gradients(module, batch, sampling)
    for name in (VLMColumns.LOGPROBS, VLMColumns.ENTROPY, VLMColumns.VALUES):
        torch.testing.assert_close(pieces[name], whole[name], rtol=1e-5, atol=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_only_sampled_tokens_are_projected(module, monkeypatch):
    batch = to_torch(pack(random_rows(module.family), max_tokens=200))
    logits, projected = module.family.logits, []

    def counted(states):
        projected.append(len(states))
        return logits(states)

    monkeypatch.setattr(module.family, "logits", counted)
    module.forward_train(batch, with_entropy=True)
    assert sum(projected) == int((batch["turn_ids"] >= 0).sum()) < int((batch["segment_ids"] > 0).sum()) / 2


def test_the_state_is_what_learns_and_what_is_frozen():
    made = make(lora={"rank": 2, "target": ["q_proj"]}, value_head=True)
    everything = made.get_state(inference_only=True)
    trained = made.get_state(components="trained", inference_only=True)
    frozen = made.get_state(components="frozen", inference_only=True)
    assert trained and all(".lora_" in name for name in trained)
    assert not trained.keys() & frozen.keys() and {**trained, **frozen}.keys() == everything.keys()
    assert any(name.startswith("value_head.") for name in made.get_state(components="trained"))
    actor = make(lora={"rank": 2, "target": ["q_proj"]}, inference_only=True)
    moved = {name: value + 1.0 for name, value in trained.items()}
    actor.load_policy(moved, version=3)
    for name, value in actor.get_state().items():
        np.testing.assert_array_equal(value, moved.get(name, everything[name]))


def test_a_module_for_inference_has_no_critic_and_takes_a_learners_weights(module):
    actor = make(value_head=True, inference_only=True)
    assert not actor.has_value_head
    state = module.get_state(inference_only=True)
    assert not any(name.startswith("value_head.") for name in state)
    actor.load_policy(state, version=7)
    prompt = actor.family.encode([Message(role="user", text="go")])
    (completion,) = actor.generate([prompt], SamplingParams(max_new_tokens=4))
    assert completion.policy_version == 7
    for name, value in actor.get_state().items():
        np.testing.assert_array_equal(value, state[name])


@pytest.mark.filterwarnings("error:The given NumPy array")
def test_weights_that_cannot_be_written_are_read_where_they_are_and_left_alone(module):
    state = {name: value + 1.0 for name, value in module.get_state(inference_only=True).items()}
    for value in state.values():
        value.flags.writeable = False  # as Ray's object store hands them out
    sent = {name: value.copy() for name, value in state.items()}
    actor = make(inference_only=True)
    actor.load_policy(state, version=1)
    for name, parameter in actor.named_parameters():
        assert parameter.data_ptr() != state[name].__array_interface__["data"][0]
        parameter.data.add_(1.0)  # the engine's own: what others read stays
    for name, value in state.items():
        np.testing.assert_array_equal(value, sent[name])
    actor.set_state(state)
    for name, value in actor.get_state().items():
        np.testing.assert_array_equal(value, sent[name])


def test_generation_keeps_the_order_of_prompts(module):
    prompts = [module.family.encode([Message(role="user", text="go " * n)]) for n in (9, 1, 5)]
    greedy = SamplingParams(temperature=0.0, max_new_tokens=4)
    together = module.generate(prompts, greedy)
    alone = [module.generate([p], greedy)[0] for p in prompts]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)


def test_forward_exploration_answers_prompts(module):
    prompt = module.family.encode([Message(role="user", text="go")])
    out = module.forward_exploration({VLMColumns.PROMPTS: [prompt, prompt]})
    assert len(out[VLMColumns.ACTIONS]) == 2


def test_a_foreign_state_is_refused(module):
    state = module.get_state()
    state.pop(next(name for name in state if name.endswith("embed_tokens.weight")))
    with pytest.raises(ModelError, match="embed_tokens"):
        module.set_state(state)


def test_a_checkpoint_brings_everything_back(module, tmp_path):
    torch.nn.init.normal_(module.value_head.outer.weight)
    module.save_to_path(tmp_path / "m")
    other = make(value_head=True, seed=5)
    other.restore_from_path(tmp_path / "m")
    for name, value in module.get_state().items():
        np.testing.assert_array_equal(other.get_state()[name], value)
    fresh = VLMRLModule.from_checkpoint(tmp_path / "m")
    np.testing.assert_array_equal(
        fresh.get_state()["value_head.outer.weight"], module.get_state()["value_head.outer.weight"]
    )


def test_what_is_no_checkpoint_is_an_error_that_says_so(module, tmp_path):
    with pytest.raises(ModelError, match="hf/"):
        module.restore_from_path(tmp_path)


def test_values_without_a_head_say_how_to_get_one():
    module = make(value_head=False)
    batch = to_torch(pack(random_rows(module.family), max_tokens=200))
    with pytest.raises(ModelError, match="value_head"):
        module.compute_values(batch)
