"""What is added to a model for reinforcement learning, or taken from it: critic, frozen parts, LoRA."""

from __future__ import annotations

import contextlib
import copy
import difflib
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rllib_vlm.errors import MissingExtraError, ModelError, UnknownNameError


class ValueHead(nn.Module):
    """A critic on hidden states: norm, one hidden layer, one number a token.

    Its parameters are float32 whatever the model's type, since values are regressed to a few
    thousandths. The last layer starts small, so that first values are near 0 and first advantages
    are those of no critic at all.

    Args:
        hidden_size: D of the model.
        width: units of the hidden layer; D where None.
    """

    def __init__(self, hidden_size: int, width: int | None = None) -> None:
        super().__init__()
        width = width or hidden_size
        self.norm = nn.LayerNorm(hidden_size)
        self.inner = nn.Linear(hidden_size, width)
        self.outer = nn.Linear(width, 1)
        nn.init.normal_(self.outer.weight, std=1e-3)
        nn.init.zeros_(self.outer.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[...] values of hidden states [..., D], float32."""
        own = hidden.to(self.outer.weight.dtype)  # not float32 where an engine keeps a float32 copy instead
        return self.outer(nn.functional.silu(self.inner(self.norm(own)))).squeeze(-1).float()


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Freezes the parameters whose names match a pattern (shell wildcards); returns their names.

    Raises:
        ModelError: a pattern matches no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen: set[str] = set()
    for pattern in patterns:
        matching = fnmatch.filter(names, pattern)
        if not matching:
            # Prefixes too: "visual.*" should be told about "model.visual.*".
            stems = sorted({n.rsplit(".", k)[0] + ".*" for n in names for k in range(1, n.count("."))})
            nearest = difflib.get_close_matches(pattern, stems + names, n=3, cutoff=0.0)
            raise ModelError(
                f"freeze pattern {pattern!r} matches no parameter. Nearest: {', '.join(map(repr, nearest))}."
            )
        frozen.update(matching)
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return sorted(frozen)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(all, trainable) numbers of the model; tied ones count once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def check_lora(config: Mapping[str, Any] | None) -> None:
    """Refuses a `lora` section that is no mapping of `rank`, `alpha` and `target`; None is no adapters.

    Raises:
        ModelError: it is no mapping, or values in it are of the wrong kind; all of them are told.
        UnknownNameError: a key there is not.
    """
    known = ("rank", "alpha", "target")
    if config is None:
        return
    if not isinstance(config, Mapping):
        raise ModelError(f"lora is {config!r}, not a mapping of {', '.join(known)}")
    for key in config:
        if key not in known:
            raise UnknownNameError("lora", key, known)
    wrong = []
    rank, alpha, target = config.get("rank", 1), config.get("alpha", 1), config.get("target", "q_proj")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        wrong.append(f"rank is {rank!r}; it must be a whole number of at least 1")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not alpha > 0:
        wrong.append(f"alpha is {alpha!r}; it must be a number above 0")
    names = _names(target)
    if not names or not all(isinstance(name, str) and name for name in names):
        wrong.append(f"target is {target!r}; it must be a list of names of linear layers, such as q_proj")
    if wrong:
        raise ModelError(f"lora: {'; '.join(wrong)}")


def _names(target: Any) -> list[Any]:
    return [target] if isinstance(target, str) else list(target) if isinstance(target, Sequence) else []


def add_lora(model: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """Puts low-rank adapters (Hu et al. 2021, arXiv 2106.09685) into `model`, in place, by peft.

    Everything else is frozen. Adapters start as the identity: outputs do not change.

    Args:
        config: `rank`, `alpha` (twice the rank where missing), `target` (names of linear layers).

    Raises:
        MissingExtraError: peft is not installed.
        ModelError: no layer is called as `target` says, one that is shares its weights with another, or a value is
            of the wrong kind.
        UnknownNameError: a key there is not.
    """
    check_lora(config)
    try:
        import peft
    except ModuleNotFoundError as error:
        raise MissingExtraError("lora", "lora") from error
    rank = int(config.get("rank", 8))
    target = _names(config.get("target", ("q_proj", "k_proj", "v_proj", "o_proj")))
    _refuse_tied(model, target)
    settings = peft.LoraConfig(
        r=rank, lora_alpha=config.get("alpha", 2 * rank), target_modules=target, lora_dropout=0.0
    )
    try:
        return peft.inject_adapter_in_model(settings, model)
    except ValueError as error:
        layers = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise ModelError(
            f"lora target {target} matches no layer; linear layers: {', '.join(layers)}"
        ) from error


def _refuse_tied(model: nn.Module, target: Sequence[str]) -> None:
    """Refuses layers whose matrix is another's as well.

    An adapter of one of two is not in the other; merged, it would be in both, so that engines and checkpoints would
    hold another model than the one that learns.

    Raises:
        ModelError: names both.
    """
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    for names in owners.values():
        for name in names:
            others = [other for other in names if other != name]
            if others and any(name == t or name.endswith(f".{t}") for t in target):
                raise ModelError(
                    f"lora target {name.rsplit('.', 1)[-1]!r} has the same weights as {', '.join(others)} "
                    "(tie_word_embeddings): adapters of one of them cannot be merged without changing the other. Leave "
                    "it out of target, or take a checkpoint with tie_word_embeddings false"
                )


@contextlib.contextmanager
def lora_off(model: nn.Module) -> Iterator[None]:
    """`model` answers as if it had no adapters."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "base_layer")]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights `model` would have without adapters, those merged in: what an engine is sent that holds none.

    Names are those of the model before `add_lora`; only adapted matrices are new tensors.
    """
    adapted: dict[str, Any] = {n: m for n, m in model.named_modules() if hasattr(m, "base_layer")}
    merged: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        layer, _, kind = name.rpartition(".base_layer.")
        if layer in adapted:
            if kind == "weight":
                with torch.no_grad():
                    for adapter in adapted[layer].active_adapters:
                        tensor = tensor + adapted[layer].get_delta_weight(adapter)
            merged[f"{layer}.{kind}"] = tensor
        elif not any(part.startswith("lora_") for part in name.split(".")):
            merged[name] = tensor
    return merged


def without_lora(model: nn.Module) -> nn.Module:
    """`model` itself, or a copy with its adapters merged into the weights they adapt."""
    if not any(hasattr(module, "base_layer") for module in model.modules()):
        return model
    merged = copy.deepcopy(model)
    for name, module in list(merged.named_modules()):
        if hasattr(module, "base_layer"):
            with torch.no_grad():
                module.merge()
            parent, _, child = name.rpartition(".")
            setattr(merged.get_submodule(parent), child, module.base_layer)
    return merged
