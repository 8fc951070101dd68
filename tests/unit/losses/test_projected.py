import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rllib_vlm.losses.logprobs import selected_logprobs
from rllib_vlm.losses.projected import projected_logprobs

N, D, V = 11, 6, 37
BANNED = (0, 7, 8, 9, 36)


class Largest(TorchDispatchMode):
    """Records the elements of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        found = out if isinstance(out, (tuple, list)) else [out]
        self.numel = max([self.numel, *(t.numel() for t in found if isinstance(t, torch.Tensor))])
        return out


def case(dtype=torch.float64, n=N, d=D, v=V):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(n, d, generator=generator, dtype=dtype, requires_grad=True)
    weight = (2.0 * torch.randn(v, d, generator=generator, dtype=dtype)).requires_grad_()
    allowed = torch.tensor([i for i in range(v) if i not in BANNED])
    ids = allowed[torch.randint(0, len(allowed), (n,), generator=generator)]
    return hidden, weight, ids


def with_all_logits(hidden, weight, ids, temperature=1.0, banned=BANNED, **kwargs):
    bans = torch.zeros(len(weight), dtype=hidden.dtype)
    bans[list(banned)] = -torch.inf
    return selected_logprobs(
        hidden,
        lambda h: (h @ weight.T + bans) / temperature,
        ids,
        chunk=len(ids),
        with_entropy=True,
        checkpoint=False,
    )


def gradients(scores, *inputs, of_logprobs=True, of_entropy=True):
    """Every token has a weight of its own in the loss."""
    g = torch.linspace(-1.0, 2.0, len(scores.logprobs), dtype=scores.logprobs.dtype)
    loss = (scores.logprobs * g).sum() * of_logprobs
    if of_entropy:
        loss = loss + (scores.entropy * g.flip(0)).sum() * 0.7
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize(("rows", "tile"), [(1, 5), (4, 20), (4, 4), (11, 11 * 37), (1000, 10_000)])
@pytest.mark.parametrize("keep_bytes", [0, 500, 10**6])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_tiles_give_the_numbers_and_gradients_of_all_logits_at_once(rows, tile, keep_bytes, temperature):
    hidden, weight, ids = case()
    expected = with_all_logits(hidden, weight, ids, temperature)
    found = projected_logprobs(
        hidden,
        weight,
        ids,
        temperature=temperature,
        banned=BANNED,
        with_entropy=True,
        rows=rows,
        tile=tile,
        keep_bytes=keep_bytes,
    )
    torch.testing.assert_close(found.logprobs, expected.logprobs)
    torch.testing.assert_close(found.entropy, expected.entropy)
    for parts in ({}, {"of_entropy": False}, {"of_logprobs": False}):
        expected = with_all_logits(hidden, weight, ids, temperature)
        found = projected_logprobs(
            hidden,
            weight,
            ids,
            temperature=temperature,
            banned=BANNED,
            with_entropy=True,
            rows=rows,
            tile=tile,
            keep_bytes=keep_bytes,
        )
        torch.testing.assert_close(
            gradients(found, hidden, weight, **parts), gradients(expected, hidden, weight, **parts)
        )


def test_float32_is_within_a_hundred_thousandth_over_a_vocabulary_of_thousands():
    exact = [tensor.detach().double().requires_grad_() for tensor in case(n=40, d=32, v=5000)[:2]]
    ids = case(n=40, d=32, v=5000)[2]
    exact[1].data.mul_(0.3)  # logits between -20 and 20
    hidden, weight = (tensor.detach().float().requires_grad_() for tensor in exact)
    expected = with_all_logits(*exact, ids)
    found = projected_logprobs(hidden, weight, ids, banned=BANNED, with_entropy=True, rows=16, tile=512)
    torch.testing.assert_close(found.logprobs.double(), expected.logprobs, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.entropy.double(), expected.entropy, rtol=0, atol=1e-5)
    for a, b in zip(gradients(found, hidden, weight), gradients(expected, *exact), strict=True):
        assert float((a - b).abs().max() / b.abs().max()) < 1e-5


def test_the_gradient_is_the_numeric_one():
    hidden, weight, ids = case()

    def both(h, w):
        found = projected_logprobs(h, w, ids, banned=BANNED, with_entropy=True, rows=4, tile=20)
        return found.logprobs, found.entropy

    assert torch.autograd.gradcheck(both, (hidden, weight))


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_is_frozen_gets_no_gradient_and_the_other_gets_its_own(frozen):
    hidden, weight, ids = case()
    free = weight if frozen == "hidden" else hidden
    expected = gradients(with_all_logits(hidden, weight, ids), free)
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    found = projected_logprobs(hidden, weight, ids, banned=BANNED, with_entropy=True, rows=4, tile=20)
    torch.testing.assert_close(gradients(found, free), expected)


def test_a_banned_token_has_no_probability():
    hidden, weight, ids = case()
    ids[2] = BANNED[0]
    found = projected_logprobs(hidden, weight, ids, banned=BANNED, rows=4, tile=20).logprobs
    assert found[2] == -torch.inf and found.isfinite().sum() == N - 1


def test_no_tensor_is_larger_than_a_tile_or_the_weights():
    hidden, weight, ids = case(torch.float32, n=64, d=8, v=5000)
    with Largest() as largest:
        scores = projected_logprobs(hidden, weight, ids, with_entropy=True, rows=32, tile=2048)
        forward = largest.numel
        (scores.logprobs.sum() + scores.entropy.sum()).backward()
    assert forward <= 5000 * 8  # a view of the weights counts; 64 x 5000 logits never were
    assert largest.numel == 5000 * 8


def test_no_positions_are_part_of_the_graph():
    hidden, weight, ids = case()
    found = projected_logprobs(hidden[:0], weight, ids[:0], with_entropy=True)
    assert found.logprobs.shape == found.entropy.shape == (0,)
    found.logprobs.sum().backward()
    assert not hidden.grad.any()


def test_half_precision_is_summed_in_float32():
    hidden, weight, ids = case(torch.bfloat16)
    exact = with_all_logits(hidden.detach().double(), weight.detach().double(), ids)
    found = projected_logprobs(hidden, weight, ids, banned=BANNED, with_entropy=True, rows=4, tile=20)
    assert found.logprobs.dtype == found.entropy.dtype == torch.float32
    torch.testing.assert_close(found.logprobs.double(), exact.logprobs, rtol=0.05, atol=0.1)
    of_hidden, of_weight = gradients(found, hidden, weight)
    assert of_hidden.dtype == of_weight.dtype == torch.bfloat16
