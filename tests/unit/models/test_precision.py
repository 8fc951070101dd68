import pytest
import torch

from rllib_vlm.models.precision import multiplies_bfloat16, products

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("auto", torch.bfloat16 if multiplies_bfloat16("cpu") else torch.float32),
    ],
)
def test_products_run_in_the_precision_asked_for(precision, dtype):
    x = torch.ones(2, 2)
    with products(CPU, precision):
        assert (x @ x).dtype == dtype


def test_auto_never_emulates():
    """What the processor says of itself decides; a device type that is not known here is not trusted."""
    found = torch.cpu.get_capabilities()
    assert multiplies_bfloat16("cpu") == any(
        found.get(n) for n in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16")
    )
    assert not multiplies_bfloat16("meta")
