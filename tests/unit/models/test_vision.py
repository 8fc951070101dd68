"""The batched tower against transformers' own, with windows, mixed sizes and large pictures."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from rllib_vlm.models.qwen2_5_vl.images import ImageFormat
from rllib_vlm.models.qwen2_5_vl.vision import image_features

FORM = ImageFormat()


@pytest.fixture(scope="module")
def tower() -> Qwen2_5_VisionTransformerPretrainedModel:
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 24,
            "window_size": 56,  # 2 x 2 image tokens
            "fullatt_block_indexes": [1],
        }
    ).vision_config
    torch.manual_seed(0)
    tower = Qwen2_5_VisionTransformerPretrainedModel(config).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape) * parameter[0].numel() ** -0.5)
    return tower


@pytest.mark.parametrize(
    "sizes",
    [
        [(112, 196)] * 3,  # windows cut by the right edge
        [(84, 140), (28, 28), (84, 140), (56, 112)],  # several sizes, interleaved
        [(28 * 17, 28 * 16), (56, 56)],  # one picture beyond what is batched
    ],
)
def test_features_are_those_of_transformers(
    tower: Qwen2_5_VisionTransformerPretrainedModel, sizes: list[tuple[int, int]]
) -> None:
    pictures = [torch.randint(0, 256, (*size, 3), dtype=torch.uint8) for size in sizes]
    groups = []
    for size in dict.fromkeys(sizes):
        order = [i for i, s in enumerate(sizes) if s == size]
        groups.append((torch.tensor(order), torch.stack([pictures[i] for i in order])))
    with torch.no_grad():
        fast = image_features(tower, groups, FORM)
        one_by_one = [
            image_features(tower, [(torch.tensor([0]), p[None])], FORM, plain=True) for p in pictures
        ]
    expected = torch.cat(one_by_one)
    assert fast.shape == (sum(FORM.tokens(*size) for size in sizes), 24)
    torch.testing.assert_close(fast, expected, atol=2e-5, rtol=1e-4)
    assert float(expected.std()) > 0.05
