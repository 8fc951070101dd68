"""Terms of the loss, each by itself."""

import torch

from rllib_vlm.core.columns import VLMColumns
from rllib_vlm.core.loss_terms import LOSS_TERMS, LossSettings


def entropy_column(values, **settings):
    entropy = torch.tensor([values], requires_grad=True)
    column, _ = LOSS_TERMS["entropy"].column(
        {VLMColumns.ENTROPY: entropy}, {}, LossSettings(coefficients={"entropy": 0.1}, **settings)
    )
    column.sum().backward()
    return column.detach().tolist()[0], entropy.grad.tolist()[0]


def test_the_bonus_pays_for_any_entropy():
    column, gradient = entropy_column([0.1, 2.0])
    assert torch.allclose(torch.tensor(column), torch.tensor([-0.1, -2.0]))
    assert gradient == [-1.0, -1.0]


def test_with_a_floor_it_pays_below_it_alone():
    column, gradient = entropy_column([0.1, 2.0], entropy_floor=0.5)
    assert torch.allclose(torch.tensor(column), torch.tensor([-0.1, -0.5]))
    assert gradient == [-1.0, 0.0]
