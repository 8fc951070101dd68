from __future__ import annotations

import pytest
import torch
from tiny import MODEL

from rllib_vlm.batching.packing import pack, to_torch
from rllib_vlm.core.rl_module import VLMRLModule
from rllib_vlm.core.value_head import ValueHeadConfig, first_of_turn, spread
from rllib_vlm.errors import ConfigErrors


def test_configuration_forms():
    assert ValueHeadConfig.of(False) is None
    assert ValueHeadConfig.of(None) is None
    assert ValueHeadConfig.of(True) == ValueHeadConfig()
    assert ValueHeadConfig.of({"width": 8, "per": "turn"}) == ValueHeadConfig(width=8, per="turn")


def test_all_mistakes_are_named_at_once():
    with pytest.raises(ConfigErrors) as error:
        ValueHeadConfig.of({"per": "word", "widht": 3, "width": 0})
    assert len(error.value.errors) == 3
    assert "Did you mean 'width'" in str(error.value)


def test_first_tokens_of_turns_and_their_values_for_all_tokens_of_the_turn():
    turn_ids = torch.tensor([[-1, 0, 0, -1, 1, 1, -1, 1], [-1, 0, 0, 0, -1, -1, -1, -1]])
    segments = torch.tensor([[1, 1, 1, 1, 1, 1, 2, 2], [1, 1, 1, 1, 0, 0, 0, 0]])
    mask = turn_ids >= 0
    first = first_of_turn(mask, turn_ids, segments)
    assert first.nonzero().tolist() == [[0, 1], [0, 4], [0, 7], [1, 1]]
    values = spread(torch.tensor([1.0, 2.0, 3.0, 4.0]), first, mask)
    assert values.tolist() == [1, 1, 2, 2, 3, 4, 4, 4]


def test_neighbouring_turns_of_two_segments_are_two_turns():
    turn_ids = torch.tensor([[0, 0, 0, 0]])
    segments = torch.tensor([[1, 1, 2, 2]])
    first = first_of_turn(turn_ids >= 0, turn_ids, segments)
    assert first.tolist() == [[True, False, True, False]]


def test_per_turn_values_are_those_of_the_state_before_the_turn():
    from rows import random_rows

    modules = {}
    for per in ("token", "turn"):
        torch.manual_seed(0)
        module = VLMRLModule(
            model_config={"family": "qwen2_5_vl", **MODEL, "value_head": {"per": per}},
            observation_space=None,
            action_space=None,
        )
        torch.nn.init.normal_(module.value_head.outer.weight, std=1.0)
        modules[per] = module
    modules["turn"].load_state_dict(modules["token"].state_dict())
    batch = to_torch(pack(random_rows(modules["token"].family), max_tokens=200))
    by_token, by_turn = (modules[per].compute_values(batch).detach() for per in ("token", "turn"))
    mask = batch["turn_ids"] >= 0
    first = first_of_turn(mask, batch["turn_ids"], batch["segment_ids"])
    torch.testing.assert_close(by_turn[first], by_token[first])
    torch.testing.assert_close(by_turn[mask], spread(by_token[first], first, mask))
    assert (by_token[mask] != by_turn[mask]).any()
    assert (by_token[~mask] == 0).all()
