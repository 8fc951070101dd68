"""Weights by part of an answer reach the right tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import MODEL

from rllib_vlm.batching.spans import token_weights
from rllib_vlm.models.qwen2_5_vl import Qwen25VL
from rllib_vlm.prompts import build_parser
from rllib_vlm.types import ActionSet, Demonstration


@pytest.fixture(scope="module")
def family():
    return Qwen25VL.build(MODEL)


def test_the_innermost_part_with_a_weight_counts():
    spans = {"think": (0, 10), "reasoning": (4, 8), "answer": (12, 14)}
    ends = np.array([2, 5, 8, 12, 13, 14, 14])  # the last is a stop token, without text
    weights = {"think": 0.5, "reasoning": 0.0, "answer": 2.0}
    assert token_weights(spans, ends, weights).tolist() == [0.5, 0.5, 0.0, 0.5, 2.0, 2.0, 1.0]
    assert token_weights(spans, ends, {"answer": 1.0, "rest": 0.0}).tolist() == [0, 0, 0, 0, 1, 1, 0]
    assert token_weights({}, ends[:0], {"answer": 1.0}).tolist() == []


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]), max_size=20))
def test_the_tokens_of_a_part_are_those_of_its_text(family, said):
    parser = build_parser("grounding")
    actions = ActionSet(("left",))
    text = parser.format(Demonstration(actions=("left",), observation=said, reasoning="go"), actions)
    ids = family.encode_answer(text)
    ends = family.char_ends(ids)
    assert len(ends) == len(ids) and ends[-1] == len(text)
    spans = parser(family.decode(ids), actions, 1).spans
    weights = token_weights(spans, ends, {"answer": 1.0, "rest": 0.0})
    inside = family.decode(ids[weights == 1.0])
    assert inside.strip("<>/") == "left"  # its tokens may share a bracket, never a neighbour's text
    reasoning = token_weights(spans, ends, {"reasoning": 1.0, "rest": 0.0})
    assert not (reasoning * weights).any()
