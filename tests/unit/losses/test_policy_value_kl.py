import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_vlm.errors import UnknownNameError
from rllib_vlm.losses.imitation import negative_log_likelihood
from rllib_vlm.losses.kl import kl_penalty
from rllib_vlm.losses.policy import policy_loss
from rllib_vlm.losses.ratio import at_level
from rllib_vlm.losses.value import explained_variance, value_loss

B, L = 3, 5
MASK = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)


def column(seed, *, scale=1.0, grad=False):
    values = scale * torch.randn(B, L, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.requires_grad_(grad)


def one(ratio, advantage, **kwargs):
    """(loss, gradient by the log-prob, metrics) of a single token."""
    logprob = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    advantages = torch.tensor([[advantage]], dtype=torch.float64)
    loss, metrics = policy_loss(
        logprob, torch.zeros(1, 1), advantages, torch.ones(1, 1, dtype=torch.bool), **kwargs
    )
    (gradient,) = torch.autograd.grad(loss.sum(), logprob)
    return loss.item(), gradient.item(), metrics


@settings(max_examples=100, deadline=None)
@given(
    st.floats(0.05, 10),
    st.floats(-3, -1e-3) | st.floats(1e-3, 3),
    st.floats(0.05, 0.3),
    st.floats(0.05, 0.5),
)
def test_clip_is_its_definition_and_has_no_gradient_outside(ratio, advantage, low, high):
    loss, gradient, metrics = one(ratio, advantage, clip_low=low, clip_high=high)
    clipped = min(max(ratio, 1 - low), 1 + high)
    assert loss == pytest.approx(-min(ratio * advantage, clipped * advantage), rel=1e-6, abs=1e-9)
    outside = (advantage > 0 and ratio > 1 + high) or (advantage < 0 and ratio < 1 - low)
    if outside:
        assert gradient == 0.0
    else:
        assert gradient == pytest.approx(-ratio * advantage, rel=1e-6, abs=1e-9)
    assert metrics["clip_fraction"].item() == float(outside)
    assert metrics["ratio_max"].item() == pytest.approx(ratio, rel=1e-6)


def test_dual_clip_bounds_the_loss_of_bad_tokens():
    assert one(8.0, -1.0)[0] == pytest.approx(8.0)
    loss, gradient, metrics = one(8.0, -1.0, dual_clip=3.0)
    assert (loss, gradient, metrics["clip_fraction"].item()) == (pytest.approx(3.0), 0.0, 1.0)
    assert one(2.0, -1.0, dual_clip=3.0)[0] == pytest.approx(2.0)
    assert one(1.1, 1.0, dual_clip=3.0)[1] == pytest.approx(-1.1)


def test_unchanged_weights_have_ratio_one_and_the_plain_policy_gradient():
    logprobs, advantages = column(0, grad=True), column(1)
    loss, metrics = policy_loss(logprobs, logprobs.detach(), advantages, MASK)
    torch.testing.assert_close(loss, torch.where(MASK, -advantages, 0.0))
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    torch.testing.assert_close(gradient, torch.where(MASK, -advantages, 0.0))
    assert metrics["ratio_max"] == metrics["ratio_min"] == 1 and metrics["approx_kl"] == 0


def test_metrics_count_masked_tokens_only():
    old = torch.zeros(B, L)
    logprobs = torch.full((B, L), 0.1)
    logprobs[0, 1] = 1.0
    logprobs[~MASK] = 7.0
    _, metrics = policy_loss(logprobs, old, torch.ones(B, L), MASK)
    assert metrics["clip_fraction"].item() == pytest.approx(1 / 6)
    assert metrics["ratio_max"].item() == pytest.approx(torch.tensor(1.0).exp().item())
    d = torch.tensor([1.0] + [0.1] * 5)
    assert metrics["ratio_p99"].item() == pytest.approx(d.quantile(0.99).exp().item())
    _, downwards = policy_loss(-logprobs, old, torch.ones(B, L), MASK)
    assert downwards["ratio_p99"].item() == pytest.approx(metrics["ratio_p99"].item())
    _, none = policy_loss(logprobs, old, torch.ones(B, L), torch.zeros_like(MASK))
    assert none["ratio_p99"].item() == 1.0
    assert metrics["approx_kl"].item() == pytest.approx((d.exp() - 1 - d).mean().item(), rel=1e-5)


def test_a_huge_ratio_stays_finite():
    logprobs = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss, metrics = policy_loss(
        logprobs, torch.zeros(1, 2), -torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool)
    )
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(logprobs.grad).all()
    assert all(torch.isfinite(m) for m in metrics.values())


TURNS = torch.tensor([[-1, 0, 0, 1, -1], [-1, -1, 0, 0, 1], [-1] * 5])
SEGMENTS = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 2, 2], [0] * 5])
IDS = {"turn_ids": TURNS, "segment_ids": SEGMENTS}
LOSSES = {
    "policy": lambda x: policy_loss(x, column(1, scale=0.1), column(2), MASK, dual_clip=3.0)[0],
    "policy by turn": lambda x: policy_loss(x, column(1), column(2), MASK, level="turn", **IDS)[0],
    "gspo": lambda x: policy_loss(x, column(1), column(2), MASK, name="gspo", **IDS)[0],
    "value": lambda x: value_loss(x, column(1), column(2), MASK)[0],
    "huber value": lambda x: value_loss(x, column(1), column(2), MASK, clip=0.5, huber=0.7)[0],
    "clipped value": lambda x: value_loss(x, column(1), column(2), MASK, clip=0.5)[0],
    "k1": lambda x: kl_penalty(x, column(1), MASK, estimator="k1"),
    "k2": lambda x: kl_penalty(x, column(1), MASK, estimator="k2"),
    "k3": lambda x: kl_penalty(x, column(1), MASK, estimator="k3"),
    "imitation": lambda x: negative_log_likelihood(x, MASK, weights=column(3).abs())[0],
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_numeric_one(name):
    # Inputs near the clip but not on its edge, where there is no derivative.
    assert torch.autograd.gradcheck(LOSSES[name], column(7, scale=0.3, grad=True))


@pytest.mark.parametrize("name", LOSSES)
def test_padding_of_nan_and_infinity_reaches_neither_loss_nor_gradient(name):
    x = column(7, scale=0.3)
    clean = LOSSES[name](x)
    x[~MASK] = torch.nan
    x[0, 0] = -torch.inf
    x.requires_grad_()
    loss = LOSSES[name](x)
    torch.testing.assert_close(loss, clean)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert torch.isfinite(gradient).all() and not gradient[~MASK].any() and gradient[MASK].any()


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_gives_a_float32_loss(name):
    assert LOSSES[name](column(7).bfloat16()).dtype in (torch.float32, torch.float64)
    x = column(7).bfloat16()
    assert policy_loss(x, x, x, MASK)[0].dtype == torch.float32
    assert value_loss(x, x, x, MASK, clip=0.1)[0].dtype == torch.float32


def test_clipped_value_loss_by_hand():
    mask = torch.ones(1, 4, dtype=torch.bool)
    old, returns = torch.zeros(1, 4), torch.full((1, 4), 2.0)
    values = torch.tensor([[0.1, 1.0, 3.0, -1.0]], requires_grad=True)
    loss, metrics = value_loss(values, old, returns, mask, clip=0.5)
    # Steps beyond 0.5 towards the target count as 0.5; away from it they count in full.
    torch.testing.assert_close(loss, 0.5 * torch.tensor([[1.9, 1.5, 1.5, 3.0]]) ** 2)
    loss.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([[-1.9, 0.0, 0.0, -3.0]]))
    assert metrics["value_clip_fraction"].item() == pytest.approx(0.5)


def test_explained_variance():
    returns = column(1)
    assert explained_variance(returns, returns, MASK).item() == pytest.approx(1.0)
    assert explained_variance(torch.full((B, L), 3.0), returns, MASK).item() == pytest.approx(0.0, abs=1e-6)
    assert explained_variance(-returns, returns, MASK).item() == pytest.approx(-3.0)
    assert explained_variance(returns, torch.ones(B, L), MASK).item() == 0.0


def test_kl_estimators_estimate_the_kl():
    # Exact expectation over a policy of four tokens.
    p, q = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.4, 0.3, 0.2, 0.1])
    exact = (p * (p / q).log()).sum()
    mask = torch.ones(1, 4, dtype=torch.bool)
    for estimator in ("k1", "k3"):
        estimate = (p * kl_penalty(p.log()[None], q.log()[None], mask, estimator=estimator)).sum()
        torch.testing.assert_close(estimate, exact)
    assert (kl_penalty(p.log()[None], q.log()[None], mask, estimator="k3") >= 0).all()
    with pytest.raises(UnknownNameError, match="k3"):
        kl_penalty(p.log()[None], q.log()[None], mask, estimator="k4")


def test_k2_has_the_gradient_of_the_kl():
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.0, 0.5, -0.5], dtype=torch.float64).log_softmax(0)
    p = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((p.exp() * (p - reference)).sum(), logits, retain_graph=True)
    mask = torch.ones(1, 3, dtype=torch.bool)
    surrogate = (p.exp().detach() * kl_penalty(p[None], reference[None], mask, estimator="k2")).sum()
    (gradient,) = torch.autograd.grad(surrogate, logits)
    torch.testing.assert_close(gradient, exact)


def test_imitation_metrics():
    loss, metrics = negative_log_likelihood(torch.full((B, L), -2.0), MASK)
    assert loss.sum().item() == 12.0 and metrics["nll"].item() == 2.0
    assert metrics["perplexity"].item() == pytest.approx(7.389, rel=1e-3)


def test_a_ratio_of_a_turn_or_sequence_is_the_geometric_mean_of_its_tokens():
    d = column(3)
    # Row 1 holds two sequences; its third token and its fourth are of turns of the same number.
    turns = {(0, 1): [(0, 1), (0, 2)], (0, 3): [(0, 3)], (1, 2): [(1, 2)], (1, 3): [(1, 3)], (1, 4): [(1, 4)]}
    sequences = {(0, 1): [(0, 1), (0, 2), (0, 3)], (1, 2): [(1, 2)], (1, 4): [(1, 3), (1, 4)]}
    for level, groups in (("turn", turns), ("sequence", sequences)):
        found = at_level(torch.where(MASK, d, 0.0), MASK, level, **IDS)
        for members in groups.values():
            mean = sum(d[m] for m in members) / len(members)
            for m in members:
                assert found[m].item() == pytest.approx(mean.item())
        assert not found[~MASK].any()
    assert at_level(d, MASK, "token") is d
    with pytest.raises(UnknownNameError, match="sequence"):
        at_level(d, MASK, "sequenze")


def test_the_sequence_ratio_has_gspos_gradient():
    """d loss / d logprob_t = -s A / |y| for each token's own share; together they make -s A d log s."""
    logprobs, old = column(0, scale=0.1, grad=True), column(1, scale=0.1)
    advantages = torch.full((B, L), 1.5, dtype=torch.float64)
    loss, metrics = policy_loss(
        logprobs, old, advantages, MASK, level="sequence", clip_low=9.0, clip_high=9.0, **IDS
    )
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    s = at_level(torch.where(MASK, (logprobs - old).detach(), 0.0), MASK, "sequence", **IDS).exp()
    torch.testing.assert_close(gradient[MASK], (-s * 1.5)[MASK])
    d = (logprobs - old).detach()[MASK]
    assert metrics["approx_kl"].item() == pytest.approx((d.exp() - 1 - d).mean().item())  # still of tokens


def test_cispo_keeps_every_gradient_and_bounds_its_weight():
    logprobs = torch.tensor([[5.0, 0.5]], dtype=torch.float64).log().requires_grad_()
    mask = torch.ones(1, 2, dtype=torch.bool)
    advantages = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    loss, metrics = policy_loss(
        logprobs, torch.zeros(1, 2), advantages, mask, name="cispo", clip_low=1.0, clip_high=0.3
    )
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    torch.testing.assert_close(gradient, torch.tensor([[-1.3 * 1.0, -0.5 * -2.0]], dtype=torch.float64))
    assert metrics["clip_fraction"].item() == 0.5
    with pytest.raises(UnknownNameError, match="cispo"):
        policy_loss(logprobs, logprobs, advantages, mask, name="cipso")


def test_huber_is_a_line_beyond_its_error():
    mask = torch.ones(1, 3, dtype=torch.bool)
    values = torch.tensor([[0.5, 2.0, -5.0]], requires_grad=True)
    loss, _ = value_loss(values, torch.zeros(1, 3), torch.zeros(1, 3), mask, huber=1.0)
    torch.testing.assert_close(loss, torch.tensor([[0.125, 1.5, 4.5]]))
    loss.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([[0.5, 1.0, -1.0]]))
