"""In what precision matrix products run where a model learns, and where it reads prompts."""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from torch import nn

# Of processors, by the names of torch.cpu.get_capabilities: x86's two ways and ARM's.
_PRODUCTS = ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16")

Precision = Literal["float32", "bfloat16", "auto"]


def products(device: torch.device, precision: str) -> torch.autocast:
    """A context in which matrix products run in this precision; weights and losses stay as they are.

    Args:
        precision: "auto" is bfloat16 where the device multiplies it, float32 elsewhere. A processor that only
            emulates it takes ten times as long as with float32.
    """
    fast = precision == "bfloat16" or (precision == "auto" and multiplies_bfloat16(device.type))
    return torch.autocast(device.type, torch.bfloat16, enabled=fast, cache_enabled=False)


def reading(precision: Precision, model: nn.Module) -> Precision:
    """The precision in which a model's prompts are read: half-precision weights multiply in their own anyway."""
    return precision if next(model.parameters()).dtype == torch.float32 else "float32"


@cache
def multiplies_bfloat16(device_type: str) -> bool:
    """Whether devices of this type here multiply bfloat16 in hardware."""
    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu":
        return False
    found = torch.cpu.get_capabilities()
    return any(bool(found.get(name)) for name in _PRODUCTS)
