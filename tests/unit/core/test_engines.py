"""Parts of engines that need no DeepSpeed: AdamW over parts of flat tensors, and passes in step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import tiny_config

from rllib_vlm.batching.packing import to_torch
from rllib_vlm.core.engines.base import EngineSettings
from rllib_vlm.core.engines.lockstep import Lockstep, filler, pieces_of
from rllib_vlm.core.engines.plain import PlainEngine
from rllib_vlm.core.engines.sharded_adamw import MASTER, Fragment, ShardedAdamW
from rllib_vlm.core.optimizers import adamw_groups
from rllib_vlm.core.rl_module import _rows
from rllib_vlm.env.vlm_env_runner import VLMEnvRunner
from rllib_vlm.errors import CheckpointError

SETTINGS = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6}


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 1))


class Halves:
    """All parameters of a network in one flat tensor a group, of which each of two learners steps its half."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.parameters = dict(module.named_parameters())
        self.learners = [
            ShardedAdamW(adamw_groups(self.parameters.items(), 0.1), **SETTINGS) for _ in range(2)
        ]
        self.flats: list[list[torch.Tensor]] = [[], []]
        for learner in self.learners:
            fragments = []
            rank = self.learners.index(learner)
            for names, group in zip(learner.names, learner.param_groups, strict=True):
                whole = torch.cat([self.parameters[n].detach().flatten() for n in names])
                half = -(-len(whole) // 2)
                flat = torch.zeros(half)
                own = whole[rank * half : (rank + 1) * half]
                flat[: len(own)] = own
                group["params"] = [flat]
                self.flats[rank].append(flat)
                fragments += self._fragments(names, flat, rank * half, half)
            learner.lay_out(fragments, sharded=False)

    def _fragments(self, names, flat, start, size):
        position = 0
        for name in names:
            count = self.parameters[name].numel()
            low, high = max(position, start), min(position + count, start + size)
            if low < high:
                yield Fragment(name, flat, low - start, low - position, high - low)
            position += count

    def step(self, gradients: dict[str, torch.Tensor], *, allowed: bool = True) -> None:
        for rank, learner in enumerate(self.learners):
            for k, names in enumerate(learner.names):
                flat = self.flats[rank][k]
                parts = [gradients.get(n, torch.full_like(self.parameters[n], 7.0)) for n in names]
                whole = torch.cat([g.flatten() for g in parts])
                own = whole[rank * len(flat) : (rank + 1) * len(flat)]
                flat.grad = torch.zeros_like(flat)
                flat.grad[: len(own)] = own
            learner.begin(set(gradients), lambda: allowed)
            learner.step()

    def whole(self, what: str) -> dict[str, torch.Tensor]:
        first, second = (learner.gather(what, torch.device("cpu")) for learner in self.learners)
        return {name: first[name] + second[name] for name in first}


def test_adamw_over_halves_is_torchs_own_whatever_a_step_touches():
    module = network()
    plain = PlainEngine(
        module,
        EngineSettings(lr=0.1, weight_decay=0.1, betas=(0.8, 0.9), epsilon=1e-6),
        device=torch.device("cpu"), rank=0, world=1,
    )  # fmt: skip
    halves = Halves(network())
    torch.manual_seed(1)
    for update in range(6):
        own = dict(module.named_parameters())
        touched = [name for i, name in enumerate(own) if update % 3 != 1 or i % 2]
        gradients = {name: torch.randn_like(own[name]) for name in touched}
        plain.zero_grad()
        for name, gradient in gradients.items():
            own[name].grad = gradient.clone()
        allowed = update != 4
        norm = plain.step(lambda _, allowed=allowed: allowed)
        assert norm > 0.0
        halves.step(gradients, allowed=allowed)
        for name, value in halves.whole(MASTER).items():
            torch.testing.assert_close(value, own[name].detach(), rtol=1e-6, atol=1e-7)
    state = plain.optimizer_states()["adamw"]
    found = halves.learners[0].whole_state(torch.device("cpu"), masters=False, keep=True)
    assert found is not None
    assert [g["params"] for g in found["param_groups"]] == [g["params"] for g in state["param_groups"]]
    assert found["param_groups"][0].keys() == state["param_groups"][0].keys()
    assert {i: float(s["step"]) for i, s in found["state"].items()} == {
        i: float(s["step"]) for i, s in state["state"].items()
    }
    anew = Halves(module)
    for learner in anew.learners:
        learner.load_whole_state(state)
    for moment in ("exp_avg", "exp_avg_sq"):
        for name, value in halves.whole(moment).items():
            torch.testing.assert_close(anew.whole(moment)[name], value)


def test_a_state_does_not_say_how_steps_are_computed():
    """It may be of a GPU, or of another version."""
    steps = []
    for way in (None, {"fused": None, "foreach": True}):
        module = network()
        engine = PlainEngine(module, EngineSettings(lr=0.1), device=torch.device("cpu"), rank=0, world=1)
        for _ in range(2):
            for parameter in module.parameters():
                parameter.grad = parameter.detach().sign()
            engine.step(lambda _: True)
            if way is not None:
                states = engine.optimizer_states()
                states["adamw"]["param_groups"] = [g | way for g in states["adamw"]["param_groups"]]
                engine.load_optimizer_states(states)
        assert all(g["fused"] and g["foreach"] is None for g in engine.optimizers["adamw"].param_groups)
        steps.append([p.detach().clone() for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*steps, strict=True))


def test_state_of_another_model_is_refused():
    module = network()
    other = torch.nn.Linear(5, 3)
    settings = EngineSettings()
    plain = PlainEngine(other, settings, device=torch.device("cpu"), rank=0, world=1)
    with pytest.raises(CheckpointError, match="another model"):
        Halves(module).learners[0].load_whole_state(plain.optimizer_states()["adamw"])


@pytest.fixture(scope="module")
def runner():
    config = tiny_config("ppo", observation="vision")
    made = VLMEnvRunner(config=config, worker_index=0, num_workers=0)
    yield made
    made.stop()


def test_a_filler_touches_what_rows_of_its_kind_do_and_teaches_nothing(runner):
    family = runner.module.family
    for pictures in (False, True):
        batch = filler(family, pictures=pictures)
        assert not any(batch[name].any() for name in ("loss_mask", "value_mask", "grounding_mask"))
        assert (batch["row_ids"] == -1).all() and (batch["turn_ids"] >= 0).any()
        family.model.zero_grad(set_to_none=True)
        hidden = family.hidden(_rows(to_torch(batch)))
        assert torch.isfinite(hidden).all()
        (hidden.sum() * 0.0).backward()
        seen = [p.grad is not None for name, p in family.model.named_parameters() if "visual" in name]
        assert all(seen) if pictures else not any(seen)
    family.model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("others", [{False: 0, True: 3}, {False: 2, True: 0}])
def test_all_learners_run_as_many_passes_of_each_kind(runner, others):
    family = runner.module.family
    own = filler(family, pictures=True)
    own["row_ids"][:] = 0
    lockstep = Lockstep(family, lambda counts: [counts, others])
    pieces = list(pieces_of(own, max_tokens=64, lockstep=lockstep))
    kinds = [bool((piece["image_sizes"][..., 0] > 0).any()) for piece in pieces]
    assert kinds == [False] * others[False] + [True] * max(1, others[True])
    assert sum((piece["row_ids"] >= 0).any() for piece in pieces) == 1
    nothing = list(pieces_of(None, max_tokens=64, lockstep=lockstep))
    assert len(nothing) == others[False] + others[True]
    assert not np.concatenate([p["row_ids"].ravel() >= 0 for p in nothing]).any()
