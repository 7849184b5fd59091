"""Colourfulness against the paper's formula, on its scale, and where its roots have no slope."""

import numpy as np
import pytest
import torch

from align3d.rewards.colorfulness import Colorfulness
from align3d.scenes.cameras import canonical
from align3d.types import Views

B, V, H, W = 2, 3, 9, 14
PROMPTS = ["a red cup", "a blue cup"]


def views(rgb: torch.Tensor, alpha: torch.Tensor | None) -> Views:
    cameras = canonical(rgb.shape[0], rgb.shape[-2], rgb.shape[-1])
    return Views(cameras, rgb=rgb, alpha=alpha)


def random_views() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(B, V, 3, H, W, generator=rng), torch.rand(B, V, 1, H, W, generator=rng)


def hasler_suesstrunk(image: np.ndarray) -> float:
    """M3 of the paper, from an image (h, w, 3) in 0..255."""
    r, g, b = image[..., 0], image[..., 1], image[..., 2]
    rg, yb = r - g, 0.5 * (r + g) - b
    return np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())


def test_is_the_papers_on_a_full_view():
    rgb, _ = random_views()
    got = 255 * Colorfulness()(views(rgb, torch.ones(B, V, 1, H, W)), PROMPTS)
    for image, value in zip(rgb.flatten(0, 1).permute(0, 2, 3, 1).double().numpy(), got.flatten(), strict=True):
        assert abs(hasler_suesstrunk(255 * image) - float(value)) < 0.06  # 2 EPS on the paper's scale


def test_background_does_not_count():
    rgb, alpha = random_views()
    alpha[..., :4] = 0
    changed = rgb.clone()
    changed[..., :4] = torch.rand(3, 1, 1)
    got = Colorfulness()(views(changed, alpha), PROMPTS)
    torch.testing.assert_close(got, Colorfulness()(views(rgb[..., 4:], alpha[..., 4:]), PROMPTS))


def test_red_is_more_colourful_than_pink():
    rgb = torch.ones(1, 2, 3, H, W)
    rgb[0, 0, 1:], rgb[0, 1, 1:] = 0, 0.7
    red, pink = Colorfulness()(views(rgb, torch.ones(1, 2, 1, H, W)), ["a cup"])[0].tolist()
    assert red == pytest.approx(0.3 * np.hypot(1, 0.5), abs=2e-4)
    assert 0 < pink < red


def test_every_sample_has_a_gradient():
    rgb, alpha = random_views()
    rgb, alpha = rgb.requires_grad_(), alpha.requires_grad_()
    value = Colorfulness()(views(rgb, alpha), PROMPTS)
    assert value.shape == (B, V)
    value.sum().backward()
    assert torch.isfinite(rgb.grad).all()
    assert (rgb.grad.flatten(2).norm(dim=2) > 0).all()
    assert alpha.grad is None  # a constant weight


def test_gradient_is_that_of_finite_differences():
    rgb, alpha = (x[:, :2, :, :3, :4].double() for x in random_views())
    rgb.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: Colorfulness()(views(x, alpha), PROMPTS), rgb)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_grey_or_empty_is_zero_with_a_finite_gradient(alpha):
    rgb = torch.rand(B, V, 1, H, W).expand(-1, -1, 3, -1, -1).clone().requires_grad_()
    value = Colorfulness()(views(rgb, torch.full((B, V, 1, H, W), alpha)), PROMPTS)
    assert value.abs().max() < 1e-6
    value.sum().backward()
    assert torch.isfinite(rgb.grad).all()
    if alpha == 0:
        assert (rgb.grad == 0).all()


def test_needs_alpha():
    with pytest.raises(ValueError, match=r"colorfulness needs views with alpha, got only rgb"):
        Colorfulness()(views(random_views()[0], None), PROMPTS)
