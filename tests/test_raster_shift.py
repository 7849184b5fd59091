"""Gaussians moved after their projection: what that gives, and what pulls at them."""

from dataclasses import replace

import pytest
import torch
from raster_reference import cameras, gaussians

from align3d.scenes.cameras import to_device
from align3d.scenes.raster import RasterConfig, gsplat, rasterize
from align3d.types import CHANNELS

BACKENDS = ("native", "torch")
B, V, N = 2, 3, 60


def moved(seed=4, size=2.0, dtype=torch.float32):
    return (size * torch.randn(B, V, N, 2, generator=torch.Generator().manual_seed(seed))).to(dtype)


def outcome(backend, inputs, cams, shift, want, config):
    leaves = [x.clone().requires_grad_() for x in (*inputs, shift)]
    views = rasterize(*leaves[:5], cams, want=want, config=config, backend=backend, shift=leaves[5])
    images = torch.cat([getattr(views, name) for name in want], 2)
    weight = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    (images * weight.to(images)).sum().backward()
    return images.detach(), [x.grad for x in leaves]


@pytest.mark.parametrize("want", [("rgb", "alpha"), CHANNELS], ids=["colours", "all"])
@pytest.mark.parametrize("config", [RasterConfig(), RasterConfig(eps2d=0.3, antialias=True)], ids=["plain", "blurred"])
def test_backends_agree_in_value_and_gradient(want, config):
    cams, double = cameras(B, V), torch.zeros((), dtype=torch.float64)
    right, grads = outcome(
        "torch", gaussians(B, N, dtype=torch.float64), to_device(cams, double), moved(dtype=torch.float64), want, config
    )
    got, mine = outcome("native", gaussians(B, N), cams, moved(), want, config)
    assert (got - right).abs().max() < 2e-5
    for one, other in zip(mine, grads, strict=True):
        assert (one - other).norm() < 2e-5 * other.norm()
    assert (grads[5].flatten(1).norm(dim=1) > 0).all() and torch.equal(mine[5] != 0, grads[5] != 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_shift_for_all_moves_the_picture(backend):
    cams = cameras(B, V)
    K = cams.K.clone()
    K[..., 0, 2] += 3.0
    K[..., 1, 2] -= 2.0
    small = gaussians(B, N)
    small[0] = 0.3 * small[0]  # away from the edges, where the projection is cut
    shift = torch.tensor([3.0, -2.0]).expand(B, V, N, 2)
    mine = rasterize(*small, cams, backend=backend, shift=shift).rgb
    torch.testing.assert_close(mine, rasterize(*small, replace(cams, K=K), backend=backend).rgb, rtol=0, atol=1e-5)
    assert (mine - rasterize(*small, cams, backend=backend).rgb).abs().max() > 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_zeros_change_nothing_and_tell_what_pulls(backend):
    cams, inputs = cameras(B, V), gaussians(B, N)
    inputs[0] = 0.3 * inputs[0]  # away from the edges, where the projection is cut
    inputs[0][:, ::5] = 50.0  # in no picture
    leaf = torch.zeros(B, V, N, 2, requires_grad=True)
    views = rasterize(*inputs, cams, backend=backend, shift=leaf)
    assert torch.equal(views.rgb, rasterize(*inputs, cams, backend=backend).rgb)
    views.rgb[:, 1].square().sum().backward()
    assert torch.isfinite(leaf.grad).all()
    assert (leaf.grad[:, [0, 2]] == 0).all() and (leaf.grad[:, :, ::5] == 0).all(), "not seen, not pulled"
    assert ((leaf.grad[:, 1] != 0).any(-1).sum(-1) > N / 3).all(), "both scenes"
    K = cams.K.clone().requires_grad_()  # moving its middle moves all Gaussians
    rasterize(*inputs, replace(cams, K=K), backend="torch").rgb[:, 1].square().sum().backward()
    torch.testing.assert_close(leaf.grad[:, 1].sum(1), K.grad[:, 1, :2, 2], rtol=1e-3, atol=1e-3)
    assert (K.grad[:, 1, :2, 2].abs() > 0.1).all()


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"shift must be \(B, V, N, 2\) = \(2, 3, 60, 2\), got \(2, 4, 60, 2\)"):
        rasterize(*gaussians(B, N), cameras(B, V), shift=torch.zeros(B, V + 1, N, 2))


def test_the_cuda_branch_hands_the_gradient_on():
    """As gsplat gives it: by the projected means, which it tells of beside the picture."""
    pull = moved(7)

    def rasterization(means, quats, scales, opacities, colors, viewmats, Ks, width, height, **_):
        means2d = means.mean(-1)[:, None, :, None].expand(B, V, N, 2) * 1.0
        sums = (means2d * pull).sum((2, 3))[..., None, None, None].expand(B, V, height, width, 3)
        return sums / (height * width), torch.ones(B, V, height, width, 1), {"means2d": means2d}

    leaf = torch.zeros(B, V, N, 2, requires_grad=True)
    inputs = tuple(x.requires_grad_() for x in gaussians(B, N))
    cams = cameras(B, V)
    views = gsplat.compose(rasterization, inputs, cams, ("rgb",), (1.0, 1.0, 1.0), RasterConfig(), leaf)
    views.rgb.sum().backward()
    torch.testing.assert_close(leaf.grad, 3 * pull)
    assert (inputs[0].grad != 0).any()
