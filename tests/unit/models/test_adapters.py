from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rllib_vlm.errors import ModelError, UnknownNameError
from rllib_vlm.models.adapters import (
    ValueHead,
    add_lora,
    count_parameters,
    freeze,
    merged_state,
    without_lora,
)
from rllib_vlm.models.base import TokenRows
from rllib_vlm.models.mllama import Mllama
from rllib_vlm.models.qwen2_5_vl import Qwen25VL
from rllib_vlm.types import Prompt, SamplingParams
from tests.unit.models.conftest import make_hot, make_prompt
from tests.unit.models.test_qwen2_5_vl import to_rows

SMALL = {"size": "tiny", "hidden_size": 64, "num_layers": 2, "vision_depth": 1}
SMALL_MLLAMA = {"size": "tiny", "hidden_size": 64, "num_layers": 4, "vision_depth": 2, "vision_hidden": 32}


def one_row(prompt: Prompt) -> TokenRows:
    return to_rows([[(prompt, np.zeros(0, np.int64))]], 0)


def test_value_head_starts_near_zero_and_learns() -> None:
    torch.manual_seed(0)
    head = ValueHead(32)
    states, targets = torch.randn(64, 32), torch.randn(64)
    assert head(states.bfloat16().view(8, 8, 32)).shape == (8, 8)
    assert head(states).dtype == torch.float32
    assert float(head(states).detach().abs().max()) < 0.05
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        loss = ((head(states) - targets) ** 2).mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1


def test_freeze_by_pattern() -> None:
    model = nn.ModuleDict({"visual": nn.Linear(2, 3), "text": nn.Linear(3, 4)})
    assert freeze(model, ["visual.*"]) == ["visual.bias", "visual.weight"]
    assert count_parameters(model) == (2 * 3 + 3 + 3 * 4 + 4, 3 * 4 + 4)


def test_a_pattern_that_matches_nothing_names_the_nearest() -> None:
    with pytest.raises(
        ModelError, match=r"'visual\.\*' matches no parameter\. Nearest: .*'model\.visual\.\*'"
    ):
        Qwen25VL.build({**SMALL, "freeze": ["visual.*"]})


def test_frozen_vision_gets_no_gradient() -> None:
    family = Qwen25VL.build({**SMALL, "freeze": "model.visual.*"})
    everything, trainable = count_parameters(family.model)
    vision = sum(p.numel() for p in family.model.model.visual.parameters())
    assert everything - trainable == vision > 0


def saved_bytes(family: Qwen25VL, prompt: Prompt) -> int:
    """What a forward pass keeps for the backward pass."""
    rows = TokenRows(
        token_ids=torch.from_numpy(prompt.token_ids)[None],
        segment_ids=torch.ones(1, len(prompt.token_ids), dtype=torch.int64),
        images=torch.from_numpy(np.stack(prompt.images))[None],
        image_sizes=torch.tensor([[image.shape[:2] for image in prompt.images]]),
    )
    sizes: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        family.hidden(rows).sum().backward()
    return sum(sizes)


def test_a_frozen_tower_has_no_graph_and_checkpointing_keeps_less() -> None:
    kept: dict[str, int] = {}
    for name, options in {
        "plain": {},
        "frozen": {"freeze": "model.visual.*"},
        "checkpointed": {"gradient_checkpointing": True},
        "both": {"freeze": "model.visual.*", "gradient_checkpointing": True},
    }.items():
        family = Qwen25VL.build({**SMALL, **options})
        made: list[torch.Tensor] = []
        for block in family.model.model.visual.blocks:
            block.attn.qkv.register_forward_hook(lambda _, __, out, made=made: made.append(out))
        kept[name] = saved_bytes(family, make_prompt(family, 1, words=20))
        assert made and all(out.requires_grad != ("freeze" in options) for out in made), name
        language = family.model.model.language_model
        assert language.layers[0].self_attn.q_proj.weight.grad.abs().max() > 0
    assert kept["frozen"] < kept["plain"]
    assert kept["both"] < kept["checkpointed"] < kept["plain"] / 2


def test_merged_weights_are_those_of_the_merged_model() -> None:
    family = Qwen25VL.build({**SMALL, "lora": {"rank": 4, "target": ["q_proj", "down_proj"]}})
    with torch.no_grad():
        for name, parameter in family.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    found, expected = merged_state(family.model), without_lora(family.model).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)
    plain = Qwen25VL.build(SMALL).model.state_dict()
    changed = {name for name, tensor in found.items() if not torch.equal(tensor, plain[name])}
    assert len(changed) == 2 * 2 + 1  # q_proj and down_proj of two layers, down_proj of the tower's one
    assert family.output_weight is family.model.lm_head.weight


def test_lora_trains_little_and_is_merged_when_saved(tmp_path: Path) -> None:
    plain = Qwen25VL.build({**SMALL, "dtype": "float32"})
    family = Qwen25VL.build({**SMALL, "lora": {"rank": 4, "target": ["q_proj", "v_proj", "down_proj"]}})
    prompts = [make_prompt(family, n, words=3) for n in range(3)]
    greedy = SamplingParams(temperature=0, max_new_tokens=4)
    before = family.generate(prompts, greedy)
    assert [i.tolist() for i, _ in before] == [i.tolist() for i, _ in plain.generate(prompts, greedy)]
    everything, trainable = count_parameters(family.model)
    assert 0 < trainable < 0.15 * everything
    with torch.no_grad():
        for name, parameter in family.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    after = family.generate(prompts, greedy)
    assert abs(after[0][1] - before[0][1]).max() > 1e-3
    family.save_pretrained(tmp_path)
    opened = Qwen25VL.build({"checkpoint": str(tmp_path)})
    for (ids, logprobs), (saved_ids, saved_logprobs) in zip(
        after, opened.generate(prompts, greedy), strict=True
    ):
        assert ids.tolist() == saved_ids.tolist()
        assert abs(logprobs - saved_logprobs).max() < 1e-4
    assert without_lora(plain.model) is plain.model


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_layers_that_share_their_weights_take_no_adapters(target: str) -> None:
    with pytest.raises(ModelError, match=rf"(?s)'{target}' has the same weights as .*tie_word_embeddings"):
        Qwen25VL.build({**SMALL, "lora": {"target": ["q_proj", target]}})


def test_an_output_layer_of_its_own_may_have_adapters() -> None:
    family = Mllama.build({**SMALL_MLLAMA, "lora": {"rank": 2, "target": ["lm_head"]}})
    assert family.output_weight is None  # more than one matrix
    prompt = make_prompt(family, 1)
    hidden = family.hidden(one_row(prompt))
    torch.nn.init.normal_(family.model.lm_head.lora_B["default"].weight)
    plain = without_lora(family.model)
    torch.testing.assert_close(plain.lm_head(hidden), family.model.lm_head(hidden))
    torch.testing.assert_close(merged_state(family.model)["lm_head.weight"], plain.lm_head.weight)


@pytest.mark.parametrize("build", [Qwen25VL.build, Mllama.build])
def test_adapters_learn_alike_whatever_is_kept_and_towers_without_any_have_no_graph(build) -> None:
    small = SMALL if build == Qwen25VL.build else SMALL_MLLAMA
    found: list[dict[str, torch.Tensor]] = []
    for checkpointing in (False, True):
        lora = {"rank": 2, "target": ["self_attn.q_proj", "cross_attn.q_proj"]}
        torch.manual_seed(0)
        family = make_hot(build({**small, "lora": lora, "gradient_checkpointing": checkpointing}))
        tower = getattr(family.model.model, "visual", None) or family.model.model.vision_model
        seen: list[bool] = []
        for module in tower.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out.requires_grad))
        family.hidden(one_row(make_prompt(family, 2))).pow(2).sum().backward()
        found.append({n: p.grad for n, p in family.model.named_parameters() if p.grad is not None})
        adapted_tower = any("lora" in name for name, _ in tower.named_modules())
        assert seen and any(seen) == adapted_tower
    plain, again = found
    assert plain.keys() == again.keys() and plain
    assert all(".lora_" in name for name in plain)
    for name, gradient in plain.items():
        scale = float(gradient.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(gradient, again[name], rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"rank": 0}, "rank is 0; it must be a whole number of at least 1"),
        ({"rank": 2.5, "alpha": -1}, "rank is 2.5; .*alpha is -1; it must be a number above 0"),
        ({"target": []}, r"target is \[\]; it must be a list of names"),
        ({"target": 3}, "target is 3"),
    ],
)
def test_values_of_the_wrong_kind_are_told_before_a_model_is_loaded(lora, said) -> None:
    with pytest.raises(ModelError, match=f"lora: {said}"):
        Qwen25VL.check_config({**SMALL, "lora": lora})


def test_one_name_is_a_target_too() -> None:
    model = nn.ModuleDict({"q_proj": nn.Linear(4, 4), "v_proj": nn.Linear(4, 4)})
    add_lora(model, {"target": "q_proj"})
    assert hasattr(model["q_proj"], "base_layer") and not hasattr(model["v_proj"], "base_layer")


def test_lora_says_what_it_does_not_know() -> None:
    model = nn.ModuleDict({"q_proj": nn.Linear(4, 4)})
    with pytest.raises(UnknownNameError, match="Did you mean 'rank'"):
        add_lora(model, {"rnak": 4})
    with pytest.raises(ModelError, match="linear layers: q_proj"):
        add_lora(model, {"target": ["nothing"]})
