from __future__ import annotations

import pytest
import torch
from torch import nn

from rllib_vlm.core.offload import move


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_all_that_is_large_moves(name):
    """To the device "meta", which is no memory at all: what still is on the CPU has been left behind."""
    model, reference = nn.Linear(3, 4, bias=False), nn.BatchNorm1d(3)
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Muon
    optimizer = kind(model.parameters(), lr=0.1)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    weight = model.weight
    move([model, reference], [optimizer], "meta")
    assert model.weight.grad is None
    tensors = [*model.state_dict().values(), *reference.state_dict().values()]
    tensors += [v for v in optimizer.state[weight].values() if torch.is_tensor(v) and v.ndim]
    assert len(tensors) == 1 + 5 + (2 if name == "adamw" else 1)
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_learning_goes_on_as_if_nothing_had_moved():
    def learn(*, moves: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()
            if moves:
                weight = model.weight
                move([model], [optimizer], "cpu")
                assert model.weight is weight
        return model.weight.detach()

    assert torch.equal(learn(moves=True), learn(moves=False))
