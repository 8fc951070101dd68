import pytest
import torch
from loss_columns import IDS, MASK, B, L, column

from rllib_vlm.losses.policy import policy_loss
from rllib_vlm.losses.ratio import at_level


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


def test_gspo_is_the_clipped_loss_of_the_sequence_s_ratio_whatever_the_level():
    logprobs, old, advantages = column(0, scale=0.1), column(1, scale=0.1), column(2)
    clips = {"clip_low": 0.01, "clip_high": 0.02, "dual_clip": 3.0}
    expected, _ = policy_loss(logprobs, old, advantages, MASK, level="sequence", **clips, **IDS)
    for level in ("token", "turn", "sequence"):
        loss, _ = policy_loss(logprobs, old, advantages, MASK, name="gspo", level=level, **clips, **IDS)
        torch.testing.assert_close(loss, expected)
    of_tokens, _ = policy_loss(logprobs, old, advantages, MASK, **clips, **IDS)
    assert not torch.allclose(of_tokens, expected)
