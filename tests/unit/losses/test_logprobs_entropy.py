import pytest
import torch

from rllib_vlm.losses.entropy import entropy_from_logits
from rllib_vlm.losses.logprobs import selected_logprobs

N, D, V = 11, 6, 9


def case(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(N, D, generator=generator, dtype=dtype, requires_grad=True)
    head = torch.randn(D, V, generator=generator, dtype=dtype, requires_grad=True)
    ids = torch.randint(0, V - 1, (N,), generator=generator)
    return hidden, head, ids


def banned_last(logits):
    return torch.cat([logits[..., :-1], torch.full_like(logits[..., -1:], -torch.inf)], -1)


@pytest.mark.parametrize("chunk", [1, 4, 11, 1000])
@pytest.mark.parametrize("checkpoint", [True, False])
def test_chunks_give_the_plain_log_softmax_entropy_and_gradients(chunk, checkpoint):
    hidden, head, ids = case()
    plain = (hidden @ head)[:, :-1].log_softmax(-1)  # the banned id left out altogether
    expected = plain.gather(-1, ids[:, None])[:, 0]
    expected_entropy = -(plain.exp() * plain).sum(-1)
    expected_gradients = torch.autograd.grad(expected.sum() + 0.3 * expected_entropy.sum(), (hidden, head))
    found = selected_logprobs(
        hidden, lambda h: banned_last(h @ head), ids, chunk=chunk, with_entropy=True, checkpoint=checkpoint
    )
    torch.testing.assert_close(found.logprobs, expected)
    torch.testing.assert_close(found.entropy, expected_entropy)
    gradients = torch.autograd.grad(found.logprobs.sum() + 0.3 * found.entropy.sum(), (hidden, head))
    torch.testing.assert_close(gradients, expected_gradients)


def test_never_more_logits_than_a_chunk():
    hidden, head, ids = case()
    seen = []

    def logits(h):
        seen.append(len(h))
        return h @ head

    selected_logprobs(hidden, logits, ids, chunk=4).logprobs.sum().backward()
    assert seen == [4, 4, 3] * 2 or sorted(seen) == [3, 3, 4, 4, 4, 4]  # forward, and again in backward
    with torch.no_grad():
        seen.clear()
        selected_logprobs(hidden, logits, ids, chunk=4)
    assert seen == [4, 4, 3]


def test_half_precision_is_summed_in_float32():
    hidden, head, ids = case(torch.bfloat16)
    found = selected_logprobs(hidden, lambda h: h @ head, ids, with_entropy=True)
    assert found.logprobs.dtype == found.entropy.dtype == torch.float32


def test_no_positions():
    hidden, head, ids = case()
    found = selected_logprobs(hidden[:0], lambda h: h @ head, ids[:0], with_entropy=True)
    assert found.logprobs.shape == found.entropy.shape == (0,)
    found.logprobs.sum().backward()  # other ranks may have tokens: the graph must still exist
    assert not hidden.grad.any()


def test_entropy_of_known_distributions():
    logits = torch.tensor([[0.0] * 8, [100.0] + [0.0] * 7, [0.0, 0.0] + [-torch.inf] * 6])
    expected = torch.tensor([8.0, 1.0, 2.0]).log()
    torch.testing.assert_close(entropy_from_logits(logits), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(entropy_from_logits(logits[:, None], chunk=2), expected[:, None])
    assert entropy_from_logits(torch.zeros(0, 3, 5)).shape == (0, 3)


def test_entropy_gradient_is_the_numeric_one_also_with_banned_tokens():
    hidden, head, _ = case()
    assert torch.autograd.gradcheck(lambda h: entropy_from_logits(h @ head, chunk=3), hidden)
    logits = banned_last((hidden @ head).detach()).requires_grad_()
    entropy_from_logits(logits).sum().backward()
    assert torch.isfinite(logits.grad).all() and not logits.grad[:, -1].any()
