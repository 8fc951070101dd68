"""Building from a size or a checkpoint, saving, and everything that can be wrong with either."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoImageProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from rllib_vlm.errors import ModelError, UnknownNameError
from rllib_vlm.models.checkpoint import resolve_checkpoint
from rllib_vlm.models.qwen2_5_vl import Qwen25VL
from rllib_vlm.types import Message, SamplingParams
from tests.unit.models.conftest import make_prompt

SMALL = {"size": "tiny", "hidden_size": 64, "num_layers": 1, "vision_depth": 1, "vision_hidden": 32}


def test_saved_model_comes_back_exactly_here_and_in_plain_transformers(tmp_path: Path) -> None:
    family = Qwen25VL.build({**SMALL, "min_pixels": 784, "max_pixels": 50_176})
    family.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    opened = Qwen25VL.build({"checkpoint": str(tmp_path)})
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    for other in (opened.model, plain):
        state = other.state_dict()
        assert state.keys() == family.model.state_dict().keys()
        assert all(torch.equal(value, state[name]) for name, value in family.model.state_dict().items())
    assert opened.images == family.images
    assert opened.banned_token_ids == family.banned_token_ids
    prompt, again = make_prompt(family, 2), make_prompt(opened, 2)
    assert prompt.token_ids.tolist() == again.token_ids.tolist()
    greedy = SamplingParams(temperature=0, max_new_tokens=6)
    (ours,), (theirs,) = family.generate([prompt], greedy), opened.generate([prompt], greedy)
    assert ours[0].tolist() == theirs[0].tolist()
    assert (
        abs(ours[1] - theirs[1]).max() < 1e-5
    )  # mapped files lie in memory differently: last bits may differ
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("<answer>done 1.5</answer>") == family.tokenizer.encode(
        "<answer>done 1.5</answer>"
    )
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (784, 50_176)
    assert plain.generation_config.eos_token_id == family.stop_token_ids[0]


def test_a_seed_makes_the_weights_and_leaves_torchs_own_stream_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one = Qwen25VL.build({**SMALL, "seed": 1}).model.state_dict()
    assert torch.equal(torch.rand(1), expected)
    same = Qwen25VL.build({**SMALL, "seed": 1}).model.state_dict()
    other = Qwen25VL.build({**SMALL, "seed": 2}).model.state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_tiny_is_tiny() -> None:
    family = Qwen25VL.build({"size": "tiny"})
    assert 1e6 < sum(p.numel() for p in family.model.parameters()) < 2e6
    assert isinstance(family.model, Qwen2_5_VLForConditionalGeneration)


@pytest.mark.parametrize(
    "name",
    ["./models/x", "/nowhere/model", "~/nowhere", "a/b/c", "models/", "nowhere", "tests/nowhere", ".."],
)
def test_a_path_never_reaches_the_hub(name: str) -> None:
    with pytest.raises(ModelError, match=r"does not exist|has no config\.json; it holds"):
        Qwen25VL.build({"checkpoint": name})


def test_a_hub_name_is_left_to_transformers() -> None:
    assert resolve_checkpoint("Qwen/Qwen2.5-VL-3B-Instruct") == "Qwen/Qwen2.5-VL-3B-Instruct"


def test_a_missing_directory_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "household_v2").mkdir()
    with pytest.raises(ModelError, match="Did you mean 'household_v2'"):
        Qwen25VL.build({"checkpoint": str(tmp_path / "household_v3")})


def test_a_packaged_model_there_is_not_lists_those_there_are() -> None:
    with pytest.raises(ModelError, match=r"no model 'houshold_x'.*Shipped: "):
        Qwen25VL.build({"checkpoint": "package:houshold_x"})
    with pytest.raises(ModelError, match=r"Did you mean 'household'"):
        Qwen25VL.check_config({"checkpoint": "package:houshold"})


def test_the_packaged_household_model_says_how_it_came_about() -> None:
    family = Qwen25VL.build({"checkpoint": "package:household"})
    folder = resolve_checkpoint("package:household")
    assert sum(file.stat().st_size for file in Path(folder).iterdir()) < 10_000_000
    card = (Path(folder) / "README.md").read_text(encoding="utf-8")
    for said in ("tuned_examples/household_pretrain.yaml", "training houses", "Seed", "Hours", "Limits"):
        assert said in card
    prompt = family.encode([Message(role="user", text="fetch the red mug")])
    assert len(prompt.token_ids) < 20  # its own tokenizer: a word of the household is a token


def test_another_architecture_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mllama", "architectures": ["MllamaForConditionalGeneration"]})
    )
    with pytest.raises(ModelError, match=r"is of model type 'mllama' \(MllamaForConditionalGeneration\)"):
        Qwen25VL.build({"checkpoint": str(tmp_path)})


def test_torn_checkpoints_are_model_errors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        Qwen25VL.build({"checkpoint": str(tmp_path)})
    Qwen25VL.build(SMALL).save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        Qwen25VL.build({"checkpoint": str(tmp_path / "whole")})
    with pytest.raises(ModelError, match="is a file; give the directory"):
        Qwen25VL.build({"checkpoint": str(tmp_path / "config.json")})


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"size": "tiny", "hiden_size": 64}, UnknownNameError, "Did you mean 'hidden_size'"),
        ({"size": "tinny"}, UnknownNameError, "Did you mean 'tiny'"),
        ({}, ModelError, "got neither"),
        ({"size": "tiny", "checkpoint": "x"}, ModelError, "got both"),
        ({"size": "tiny", "dtype": "bfloat61"}, ModelError, "Did you mean 'bfloat16'"),
        (
            {"size": "tiny", "hidden_size": 100, "num_heads": 3},
            ModelError,
            "hidden_size 100 must be a multiple",
        ),
        ({"size": "tiny", "num_heads": 4, "num_kv_heads": 3}, ModelError, "num_heads 4 must be a multiple"),
        ({"size": "tiny", "attn_implementation": "eager"}, ModelError, "plain_forward"),
    ],
)
def test_wrong_configurations_say_so(config: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Qwen25VL.build(config)
