import pytest
import torch

from rllib_vlm.errors import UnknownNameError
from rllib_vlm.losses.policy import policy_loss


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
