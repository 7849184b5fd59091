"""The CUDA branch, on the CPU: its channels and its glue, with the torch twin in the place of gsplat's kernels."""

import pytest
import torch
from raster_reference import cameras, gaussians

from align3d.scenes.raster import RasterConfig, gsplat, rasterize, torch_tiles
from align3d.scenes.raster.projection import project

CONFIGS = [RasterConfig(), RasterConfig(eps2d=0.3, antialias=True), RasterConfig(normalize_quats=False)]
WANT = ("rgb", "alpha", "depth", "normal")


def fake_rasterization(cams, config):
    """A function like gsplat.rasterization that composites any channels, three at a time, with the torch twin."""

    def rasterization(
        means, quats, scales, opacities, colors, viewmats, Ks, width, height, *,
        near_plane, eps2d, packed, rasterize_mode, covars,
    ):  # fmt: skip
        B, V = cams.c2w.shape[:2]
        assert torch.allclose(viewmats @ cams.c2w, torch.eye(4).expand(B, V, 4, 4), atol=1e-5)
        assert torch.equal(Ks, cams.K) and (width, height) == (cams.width, cams.height)
        assert near_plane == config.near and eps2d == config.eps2d and not packed
        assert rasterize_mode == ("antialiased" if config.antialias else "classic")
        assert (covars is None) == config.normalize_quats
        if covars is not None:
            assert torch.linalg.eigvalsh(covars).min() > -1e-7
        projection = project(means, quats, scales, opacities, cams, config)
        lists = torch_tiles.tile_lists(projection, height, width)
        flat = torch.cat([projection.mean2d, projection.conic, projection.opacity[..., None]], dim=-1)
        features = colors if colors.ndim == 4 else colors[:, None].expand(-1, V, -1, -1)
        parts = []
        for part in features.split(3, dim=-1):
            zeros = torch.zeros(*part.shape[:-1], 6)
            sums = torch_tiles._blend_all(torch.cat([flat, part, zeros], -1).flatten(0, 2), lists, cams, config)
            parts.append(sums[..., :3])
        return torch.cat(parts, dim=-1), 1 - sums[..., 7:8], {}

    return rasterization


def both(config, want):
    cams, weights = cameras(), torch.Generator().manual_seed(0)
    noise = {name: torch.randn(2, 3, 3, 21, 38, generator=weights) for name in want}
    results = []
    for run in (
        lambda *x: gsplat.compose(fake_rasterization(cams, config), x, cams, want, (0.3, 0.2, 0.9), config),
        lambda *x: rasterize(*x, cams, want=want, background=(0.3, 0.2, 0.9), config=config, backend="native"),
    ):
        leaves = [x.requires_grad_() for x in gaussians()]
        views = run(*leaves)
        images = {name: getattr(views, name) for name in want}
        sum((image * noise[name]).sum() for name, image in images.items()).backward()
        results.append((images, [x.grad for x in leaves]))
    return results


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("want", [WANT, ("rgb", "alpha")])
def test_nine_composited_channels_give_the_native_depth_and_normals(config, want):
    (images, grads), (expected, expected_grads) = both(config, want)
    for name in want:
        assert (images[name] - expected[name]).abs().max() < 2e-5, name
    for grad, right in zip(grads, expected_grads, strict=True):
        assert right.norm() > 0 and (grad - right).norm() < 5e-5 * right.norm()


def test_what_gsplat_cannot_do_is_refused():
    inputs, cams = gaussians(), cameras()
    with pytest.raises(ValueError, match="needs CUDA tensors"):
        rasterize(*inputs, cams, backend="gsplat")
    with pytest.raises(ValueError, match="no median depth"):
        gsplat.check(cams, ("median_depth",), RasterConfig())
    with pytest.raises(ValueError, match="built in"):
        gsplat.check(cams, ("rgb",), RasterConfig(t_min=1e-3))
    cams.K.requires_grad_()
    with pytest.raises(ValueError, match="no gradient"):
        gsplat.check(cams, ("rgb",), RasterConfig())


def test_no_gaussians_never_reach_gsplat():
    cams, empty = cameras(), gaussians(N=0)
    views = gsplat.compose(pytest.fail, tuple(empty), cams, ("rgb",), (0.1, 0.2, 0.3), RasterConfig())
    assert torch.equal(views.rgb, torch.tensor([0.1, 0.2, 0.3])[:, None, None].expand(2, 3, 3, 21, 38))
