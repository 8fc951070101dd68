import pytest
import torch
from loss_columns import IDS, MASK, B, L, column

from rllib_vlm.errors import UnknownNameError
from rllib_vlm.losses.imitation import negative_log_likelihood
from rllib_vlm.losses.kl import kl_penalty
from rllib_vlm.losses.policy import policy_loss
from rllib_vlm.losses.ratio import at_level
from rllib_vlm.losses.value import explained_variance, value_loss


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


def test_huber_is_a_line_beyond_its_error():
    mask = torch.ones(1, 3, dtype=torch.bool)
    values = torch.tensor([[0.5, 2.0, -5.0]], requires_grad=True)
    loss, _ = value_loss(values, torch.zeros(1, 3), torch.zeros(1, 3), mask, huber=1.0)
    torch.testing.assert_close(loss, torch.tensor([[0.125, 1.5, 4.5]]))
    loss.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([[0.5, 1.0, -1.0]]))
