from __future__ import annotations

import pytest
import torch

from rllib_vlm.errors import ModelError
from rllib_vlm.models.qwen2_5_vl import Qwen25VL
from rllib_vlm.types import Message

CONFIG = {"size": "tiny", "hidden_size": 64, "num_layers": 3}


def test_layers_keep_the_spread_of_what_goes_in() -> None:
    model = Qwen25VL.build(CONFIG).model
    layer = model.model.language_model.layers[0]
    x = torch.randn(500, 64)
    assert layer.self_attn.q_proj(x).std().item() == pytest.approx(1.0, abs=0.15)
    assert layer.mlp.gate_proj(x).std().item() == pytest.approx(1.0, abs=0.15)
    # What adds to the residual stream is smaller by sqrt(2 * 3 layers).
    assert layer.self_attn.o_proj(x).std().item() == pytest.approx(6**-0.5, abs=0.08)
    assert model.model.visual.blocks[0].attn.proj.weight.std().item() < 64**-0.5
    assert (layer.input_layernorm.weight == 1.0).all()


def test_words_tell_apart_from_the_start() -> None:
    family = Qwen25VL.build(CONFIG)
    prompt = family.encode([Message(role="user", text="fetch the red mug from the kitchen table")])
    ids = torch.from_numpy(prompt.token_ids)[None]
    language = family.model.model.language_model
    with torch.no_grad():
        stream = language(input_ids=ids).last_hidden_state[0]
    embedded = torch.nn.functional.normalize(language.embed_tokens(ids)[0], dim=-1)
    similarity = torch.nn.functional.normalize(stream, dim=-1) @ embedded.T
    own = similarity.diagonal().mean() - similarity.mean()
    assert own > 0.1  # each position still says which word stands there


def test_the_same_seed_gives_the_same_weights() -> None:
    a, b, c = (Qwen25VL.build({**CONFIG, "seed": seed}).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["lm_head.weight"], c["lm_head.weight"])


@pytest.mark.parametrize("sections", [[1, 2], [0, 8, 8], [4, 6, 5]])
def test_rotary_sections_must_fill_half_a_head(sections: list[int]) -> None:
    with pytest.raises(ModelError, match="three numbers from 1 up that add up to 16"):
        Qwen25VL.build({**CONFIG, "mrope_section": sections})
