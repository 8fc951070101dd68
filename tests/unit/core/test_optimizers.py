"""Which optimizer holds which parameter, and what a step of Muon does."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from rllib_vlm.core.muon import Muon
from rllib_vlm.core.optimizers import build_optimizers

ADAMW = {"lr": 0.1, "weight_decay": 0.3, "betas": (0.9, 0.99), "epsilon": 1e-8}


def parameters() -> dict[str, torch.nn.Parameter]:
    torch.manual_seed(0)
    shapes = {
        "model.embed_tokens.weight": (9, 4),
        "model.layers.0.mlp.up_proj.weight": (6, 4),
        "model.layers.0.norm.weight": (4,),
        "model.patch_embed.proj.weight": (4, 3, 1, 2, 2),
        "value_head.outer.weight": (1, 4),
        "value_head.outer.bias": (1,),
    }
    return {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}


def held(optimizer: torch.optim.Optimizer, named: dict[str, torch.nn.Parameter]) -> dict[str, dict]:
    names = {id(parameter): name for name, parameter in named.items()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}


def test_adamw_holds_everything_and_decays_matrices_alone() -> None:
    named = parameters()
    (optimizer,) = build_optimizers(named.items(), "adamw", **ADAMW).values()
    groups = held(optimizer, named)
    assert groups.keys() == named.keys()
    for name, group in groups.items():
        assert group["weight_decay"] == (0.3 if named[name].ndim >= 2 else 0.0)
        assert group["value"] == name.startswith("value_head.")


@pytest.mark.parametrize("laid_out", ["as usual", "channels last"])
def test_a_step_of_adamw_is_the_same_however_parameters_lie(laid_out: str) -> None:
    """Torch's fused step reads memory as it lies."""
    named = parameters()
    images = torch.randn(4, 3, 2, 2)
    moved = images.to(memory_format=torch.channels_last) if laid_out == "channels last" else images.clone()
    named["conv.weight"] = torch.nn.Parameter(moved)
    expected = {name: torch.nn.Parameter(p.detach().clone().contiguous()) for name, p in named.items()}
    gradients = {name: torch.randn(p.shape) for name, p in named.items()}
    (own,) = build_optimizers(named.items(), "adamw", **ADAMW).values()
    decayed = [p for p in expected.values() if p.ndim >= 2]
    rest = [p for p in expected.values() if p.ndim < 2]
    groups = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    other = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.3, betas=(0.9, 0.99), foreach=False)
    for _ in range(3):
        for name, gradient in gradients.items():
            named[name].grad, expected[name].grad = gradient.clone(), gradient.clone()
        own.step()
        other.step()
    for name, p in named.items():
        torch.testing.assert_close(p, expected[name], rtol=1e-5, atol=1e-6, check_stride=False)


def test_muon_holds_hidden_matrices_and_adamw_the_rest() -> None:
    named = parameters()
    named["model.layers.1.frozen.weight"] = torch.nn.Parameter(torch.ones(3, 3), requires_grad=False)
    found = build_optimizers(named.items(), "muon", **ADAMW)
    assert held(found["muon"], named).keys() == {"model.layers.0.mlp.up_proj.weight"}
    assert held(found["adamw"], named).keys() == set(named) - {
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.frozen.weight",
    }
    tables = {"lm_head.weight": named["model.embed_tokens.weight"]}
    assert build_optimizers(tables.items(), "muon", **ADAMW).keys() == {"adamw"}  # nothing hidden in it


def test_a_step_of_muon_has_the_size_of_one_of_adamw_and_no_favourite_direction() -> None:
    torch.manual_seed(1)
    matrix = torch.nn.Parameter(torch.zeros(64, 96))
    settings = {**ADAMW, "weight_decay": 0.0}
    optimizer = build_optimizers([("hidden.weight", matrix)], "muon", **settings)["muon"]
    spread = torch.logspace(0, -1, 64)[
        :, None
    ]  # a gradient that AdamW and SGD would follow mostly in few rows
    matrix.grad = torch.randn(64, 96) * spread
    optimizer.step()
    step = matrix.detach() / settings["lr"]
    assert 0.1 < float(step.square().mean().sqrt()) < 0.4  # arXiv 2502.16982: 0.2
    singular = torch.linalg.svdvals(step)
    assert float(singular.max() / singular.min()) < 3.0
    assert float(torch.linalg.svdvals(matrix.grad).max() / torch.linalg.svdvals(matrix.grad).min()) > 10.0


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (1, 9)])
def test_muon_steps_as_torch_does_and_goes_on_from_its_state(shape: tuple[int, int]) -> None:
    """Which takes its steps in bfloat16, of three digits."""
    torch.manual_seed(2)
    start = torch.randn(shape)
    own, other = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    settings = {"lr": 0.01, "weight_decay": 0.1}
    reference = torch.optim.Muon([other], adjust_lr_fn="match_rms_adamw", **settings)
    optimizer = Muon([own], **settings)
    for update in range(6):
        if update == 3:
            optimizer = Muon([own], **settings)
            optimizer.load_state_dict(deepcopy(reference.state_dict()))
        own.grad = torch.randn(shape)
        other.grad = own.grad.clone()
        optimizer.step()
        reference.step()
    moved = (own.detach() - start).norm()
    assert float((own.detach() - other.detach()).norm() / moved) < 0.02
    assert float(moved / start.norm()) > 0.005


def test_muon_is_for_matrices() -> None:
    with pytest.raises(ValueError, match=r"\(3,\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))])
