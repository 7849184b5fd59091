"""Classifier-free guidance: end points, and that it commutes with a change of parametrisation."""

import torch

from align3d.diffusion.guidance import guide
from align3d.diffusion.schedule import DiscreteVP, eps_from_v


def test_scale_moves_from_unconditional_through_conditional() -> None:
    cond, uncond = torch.tensor([[1.0, 2.0], [5.0, -3.0]]), torch.tensor([[0.0, 4.0], [1.0, 1.0]])
    assert torch.equal(guide(cond, uncond, 0.0), uncond)
    assert torch.equal(guide(cond, uncond, 1.0), cond)
    assert torch.equal(guide(cond, uncond, 3.0), torch.tensor([[3.0, -2.0], [13.0, -11.0]]))


def test_guidance_commutes_with_the_parametrisation() -> None:
    x, cond, uncond = (torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(i)).double() for i in range(3))
    t = torch.tensor([0.2, 0.8])
    eps = [eps_from_v(DiscreteVP(), x, v, t) for v in (cond, uncond)]
    torch.testing.assert_close(guide(*eps, 5.0), eps_from_v(DiscreteVP(), x, guide(cond, uncond, 5.0), t))


def test_gradient_reaches_both_predictions() -> None:
    cond, uncond = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    guide(cond, uncond, 4.0).sum().backward()
    assert (cond.grad == 4).all() and (uncond.grad == -3).all()
