"""Depth-normal consistency on surfaces with known depth and normals, from arbitrary cameras."""

import math
from pathlib import Path

import pytest
import tiny_yoso
import torch
from safetensors.torch import load_file

from align3d.rewards.dnc import DNC, normals_from_depth, seen_with
from align3d.scenes.cameras import look_at, orbit, pixel_rays
from align3d.types import Cameras, Views

B, V, H, W = 2, 3, 21, 30
PROMPTS = ["a red cup", "a blue cup"]
RECORDED = Path(__file__).parent / "data" / "rewards" / "dnc.safetensors"


def cameras(scale: int = 1) -> Cameras:
    """Cameras in odd poses, with unequal focal lengths and a principal point off the centre."""
    rng = torch.Generator().manual_seed(3)
    eye = torch.randn(B, V, 3, generator=rng).double()
    eye = 1.6 * eye / eye.norm(dim=-1, keepdim=True)
    K = torch.tensor([[40.0, 0, 13.2], [0, 36.0, 11.7], [0, 0, 1]]).double() * torch.tensor([[scale], [scale], [1]])
    return Cameras(look_at(eye, (0.1, -0.05, 0.07)), K.expand(B, V, 3, 3), H * scale, W * scale)


def plane(cams: Cameras) -> Views:
    """An endless plane in front of each camera, tilted by up to about 50 degrees, facing it."""
    origin, direction = pixel_rays(cams)
    forward = cams.c2w[..., :3, 2]
    tilt = 0.5 * torch.randn(B, V, 3, generator=torch.Generator().manual_seed(5)).double()
    normal = torch.nn.functional.normalize(-forward + tilt, dim=-1)[..., None, None]
    point = (origin[..., 0, 0] + 1.5 * forward)[..., None, None]
    depth = ((point - origin) * normal).sum(2, keepdim=True) / (direction * normal).sum(2, keepdim=True)
    assert (depth > 0).all()
    return Views(cams, alpha=torch.ones_like(depth), depth=depth, normal=normal.expand(-1, -1, -1, *depth.shape[-2:]))


def sphere(cams: Cameras, radius: float = 0.45) -> Views:
    """A ball around the origin."""
    origin, direction = pixel_rays(cams)
    a, b = (direction**2).sum(2, keepdim=True), (origin * direction).sum(2, keepdim=True)
    under = b**2 - a * ((origin**2).sum(2, keepdim=True) - radius**2)
    hit = under > 0
    depth = torch.where(hit, (-b - under.clamp_min(1e-12).sqrt()) / a, 0)
    normal = torch.where(hit, (origin + depth * direction) / radius, 0)
    return Views(cams, alpha=hit.to(depth), depth=depth, normal=normal)


def replaced(views: Views, **fields) -> Views:
    return Views(**{**vars(views), **fields})


def test_plane_is_exact():
    views = plane(cameras())
    got = normals_from_depth(views.depth, views.cameras)
    torch.testing.assert_close(got[..., 1:-1, 1:-1], views.normal[..., 1:-1, 1:-1], rtol=0, atol=1e-10)
    assert (got[..., 0, :] == 0).all() and (got[..., -1, :] == 0).all()
    assert (got[..., 0] == 0).all() and (got[..., -1] == 0).all()
    torch.testing.assert_close(DNC()(views, PROMPTS), torch.ones(B, V).double())
    torch.testing.assert_close(DNC()(replaced(views, normal=-views.normal), PROMPTS), -torch.ones(B, V).double())


@pytest.mark.parametrize("change", ["focal", "centre", "pose"])
def test_wrong_cameras_are_noticed(change):
    views = plane(cameras())
    K, c2w = views.cameras.K.clone(), views.cameras.c2w.clone()
    if change == "focal":
        K[..., 0, 0] *= 1.1
    elif change == "centre":
        K[..., 0, 2] += 4
    else:
        c2w[:, 0], c2w[:, 1] = views.cameras.c2w[:, 1], views.cameras.c2w[:, 0]
    wrong = replaced(views, cameras=Cameras(c2w, K, H, W))
    assert (DNC()(wrong, PROMPTS)[:, :2] < 1 - 1e-5).all()


def test_sphere_converges():
    errors = [1 - DNC()(sphere(cameras(scale)), PROMPTS) for scale in (1, 4)]
    assert (errors[0] < 0.02).all()
    assert (errors[1] < errors[0] / 4).all() and (errors[1] >= 0).all()


def test_single_precision_is_enough():
    views = sphere(cameras(4))
    single = Views(
        Cameras(views.cameras.c2w.float(), views.cameras.K.float(), views.cameras.height, views.cameras.width),
        **{name: getattr(views, name).float() for name in ("alpha", "depth", "normal")},
    )
    assert (DNC()(single, PROMPTS) - DNC()(views, PROMPTS)).abs().max() < 1e-3


def test_mask():
    views = sphere(cameras(2))
    inner, plain, facing = (DNC(**k).mask(views) for k in ({}, {"neighbours": False}, {"max_angle": 60.0}))
    assert inner.sum() < plain.sum() and (plain | ~inner).all()
    assert facing.sum() < inner.sum() and (inner | ~facing).all()
    rays = torch.nn.functional.normalize(pixel_rays(views.cameras)[1], dim=2)
    slant = -(rays * views.normal).sum(2, keepdim=True)
    assert (slant[facing] > 0.5).all() and (slant[inner & ~facing] <= 0.5).all()
    for mask in (inner, plain):
        assert not mask[..., 0, :].any() and not mask[..., -1].any()
    half = replaced(views, alpha=views.alpha * 0.6)
    assert not DNC().mask(half).any() and torch.equal(DNC(alpha=0.5).mask(half), inner)


def test_outline_hurts_unless_neighbours_are_asked():
    views = sphere(cameras())
    assert (DNC(neighbours=False)(views, PROMPTS) < DNC()(views, PROMPTS) - 0.005).all()


@pytest.mark.parametrize("detach", ["none", "depth", "normal"])
def test_every_sample_has_a_gradient(detach):
    views = sphere(cameras())
    depth, normal = views.depth.float().requires_grad_(), views.normal.float().requires_grad_()
    alpha = views.alpha.float().requires_grad_()
    value = DNC(detach=detach)(replaced(views, alpha=alpha, depth=depth, normal=normal), PROMPTS)
    assert value.shape == (B, V)
    value.sum().backward()
    assert alpha.grad is None
    for name, x in (("depth", depth), ("normal", normal)):
        if name == detach:
            assert x.grad is None
        else:
            assert torch.isfinite(x.grad).all() and (x.grad.flatten(2).norm(dim=2) > 0).all()


def test_gradient_is_that_of_finite_differences():
    views = sphere(cameras())
    rows = (slice(None), slice(None), slice(None), slice(8, 13), slice(11, 17))
    K = views.cameras.K.clone()
    K[..., :2, 2] -= torch.tensor([11.0, 8.0]).double()
    cams = Cameras(views.cameras.c2w, K, 5, 6)
    depth = views.depth[rows].clone().requires_grad_()
    assert (depth > 0).all()
    assert torch.autograd.gradcheck(lambda x: normals_from_depth(x, cams), depth)


def test_nothing_seen_is_zero_with_a_zero_gradient():
    zero = torch.zeros(B, V, 1, H, W)
    depth, normal = zero.clone().requires_grad_(), zero.expand(-1, -1, 3, -1, -1).clone().requires_grad_()
    value = DNC(max_angle=80.0)(Views(cameras(), alpha=zero, depth=depth, normal=normal), PROMPTS)
    assert (value == 0).all()
    value.sum().backward()
    assert (depth.grad == 0).all() and (normal.grad == 0).all()


@pytest.mark.parametrize("context", ["inference", "train"])
def test_a_variant_has_the_numbers_of_the_published_code(context):
    """Also where the object touches the border of the picture; tests/data/rewards/README.md says what was recorded."""
    numbers, (height, width) = load_file(RECORDED), (20, 28)
    raw, depth = (make(B * V, height, width) for make in (tiny_yoso.normals, tiny_yoso.depths))
    raw, depth = raw.requires_grad_(), depth.requires_grad_()
    alpha = tiny_yoso.alphas(B * V, height, width).unflatten(0, (B, V))
    assert (alpha[..., 0] > 0.5).any() and (alpha[..., -1] > 0.5).any()
    azimuth = torch.tensor([[10.0, 100.0, 200.0], [33.0, 170.0, 300.0]])
    cams = orbit(azimuth, 20 - azimuth / 10, height=height, width=width)
    world = torch.einsum("bvij,bvjhw->bvihw", cams.c2w[..., :3, :3], raw.unflatten(0, (B, V)))
    views = Views(cams, alpha=alpha, depth=depth.unflatten(0, (B, V)), normal=world)
    published = {
        "alpha": 0.5,
        "neighbours": False,
        "fov": 40.0,
        "detach": "depth" if context == "inference" else "none",
    }
    angle = DNC(max_angle=60.0, **published)(views, PROMPTS).flatten()
    torch.testing.assert_close(angle, numbers[f"{context}.angle.scores"], rtol=1e-5, atol=0)
    scores = DNC(**published)(views, PROMPTS).flatten()
    torch.testing.assert_close(scores, numbers[f"{context}.scores"], rtol=1e-5, atol=0)
    assert ((scores - DNC(**published | {"fov": None})(views, PROMPTS).flatten()).abs() > 1e-5).all()
    scores.sum().backward()
    torch.testing.assert_close(raw.grad[..., ::3, ::4], numbers[f"{context}.by_normals"], rtol=1e-4, atol=1e-8)
    if context == "inference":
        assert depth.grad is None
    else:
        torch.testing.assert_close(depth.grad[..., ::2, ::3], numbers["train.by_depth"], rtol=1e-4, atol=1e-6)


def test_field_of_view():
    seen = seen_with(cameras(), 40.0)
    edge = pixel_rays(seen)[1] - 0.5 * (pixel_rays(seen)[1][..., 1:2, :] - pixel_rays(seen)[1][..., :1, :])
    ahead = torch.einsum("bvji,bvjw->bviw", seen.c2w[..., :3, :3], edge[..., 0, :])
    torch.testing.assert_close(-ahead[:, :, 1], torch.full((B, V, W), math.tan(math.radians(20))).double())
    square = Cameras(seen.c2w, seen.K, H, W)
    views = plane(square)
    views = replaced(views, cameras=cameras())  # other intrinsics
    torch.testing.assert_close(DNC(fov=40.0)(views, PROMPTS), torch.ones(B, V).double())


def test_bad_input():
    views = plane(cameras())
    with pytest.raises(ValueError, match=r"reward dnc needs views with normal, got only alpha, depth"):
        DNC()(replaced(views, normal=None), PROMPTS)
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\), got 1.0"):
        DNC(alpha=1.0)
    with pytest.raises(ValueError, match=r"max_angle must be in \(0, 90\] degrees, got 0"):
        DNC(max_angle=0.0)
    with pytest.raises(ValueError, match=r"fov must be in \(0, 180\) degrees, got 180"):
        DNC(fov=180.0)
