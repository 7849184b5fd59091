"""Neural radiance fields: a field whose pictures are known, and each fast path beside a slow one."""

import math
from dataclasses import dataclass

import pytest
import torch
from tiny_nerf import KINDS, B, cameras, nerf, seeded
from torch.nn import functional as F

from align3d.scenes.cameras import pixel_rays
from align3d.scenes.nerf import penalties
from align3d.scenes.nerf.nerf import NerfScene, channels
from align3d.scenes.nerf.options import Penalties
from align3d.scenes.nerf.volume import DIAGONAL, Rays, along, inside, joined, nothing, trace, with_normals


@dataclass
class Sphere:
    """Opaque within a radius, coloured by place."""

    radius: float = 0.7
    height: float = 400.0
    edge: float = 1000.0

    def density(self, x, twice=False):
        return self.height * torch.sigmoid((self.radius - x.norm(dim=1)) * self.edge), x

    def color(self, code):
        return (code + 1) / 2


def test_a_sphere_is_seen_as_a_sphere():
    seen, sphere = cameras(focal=1.2), Sphere()
    rays = Rays.of(seen)
    with torch.no_grad():
        pixels = trace(sphere, rays, along(rays, 600), normals=True)
    got = channels(pixels, rays, seen, ("rgb", "alpha", "depth", "median_depth", "normal"), (0.0, 0.5, 1.0))
    origin, direction = pixel_rays(seen)
    r = sphere.radius / 2  # scene units
    a = direction.square().sum(2, keepdim=True)
    b, c = (origin * direction).sum(2, keepdim=True), origin.square().sum(2, keepdim=True) - r * r
    under = b * b - a * c
    depth = (-b - under.clamp_min(0).sqrt()) / a  # direction has camera z = 1
    hit, clear = under / a > 0.004, under / a < -0.004  # not at the very edge
    assert 0.1 < float(hit.float().mean()) < 0.6 and float((hit | clear).float().mean()) > 0.9
    assert float(got["alpha"][hit].min()) > 0.999 and float(got["alpha"][clear].max()) < 1e-3
    near = 3 * DIAGONAL / 600 / 2
    for name in ("depth", "median_depth"):
        assert float((got[name] - depth)[hit].abs().max()) < near
    point = origin + depth * direction
    normal = F.normalize(point, dim=2)
    each = hit.expand_as(normal)
    assert float((got["normal"] - normal)[each].abs().max()) < 0.05
    assert float((got["rgb"] - (2 * point + 1) / 2)[each].abs().max()) < 3 * near
    outside = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1).expand_as(normal)
    none = clear.expand_as(normal)
    assert float((got["rgb"] - outside)[none].abs().max()) < 1e-3
    assert (got["depth"][clear & (got["alpha"] == 0)] == 0).all()


def marched_by_hand(field, rays, steps, jitter):
    """The same light, ray by ray, without packing."""
    width, found = DIAGONAL / steps, []
    for o, d, shift in zip(rays.origin, rays.direction, jitter, strict=True):
        ends = torch.stack([(-1 - o) / d, (1 - o) / d])
        near, far = float(ends.amin(0).amax().clamp_min(0)), float(ends.amax(0).amin())
        rgb, left, t, alpha, length = torch.zeros(3), torch.ones(()), near + float(shift) * width, 0.0, 0.0
        while near < t < far:
            sigma, code = field.density((o + t * d)[None])
            taken = 1 - (-sigma[0] * width).exp()
            rgb = rgb + left * taken * field.color(code)[0]
            alpha, length = alpha + left * taken, length + left * taken * t
            left, t = left * (1 - taken), t + width
        found.append(torch.cat([rgb, torch.stack([torch.as_tensor(alpha), torch.as_tensor(length)])]))
    return torch.stack(found)


@pytest.mark.parametrize("kind", KINDS)
def test_marching_is_the_sum_over_each_ray(kind):
    made, rays = nerf(kind), Rays.of(cameras(1, 2, 3, 4))
    jitter = torch.rand(len(rays), generator=seeded(5)) * 0.98 + 0.01
    parameters = list(made.field.parameters())
    pixels = trace(made.field, rays, along(rays, 24, jitter))
    fast = torch.cat([pixels.rgb, pixels.alpha[:, None], (pixels.length * pixels.alpha)[:, None]], 1)
    slow = marched_by_hand(made.field, rays, 24, jitter)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    pull = torch.randn(fast.shape, generator=seeded(6))
    pairs = zip(*(torch.autograd.grad((pull * x).sum(), parameters) for x in (fast, slow)), strict=True)
    for a, b in pairs:
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


class Cut(torch.nn.Module):
    """A field that is empty beyond a radius."""

    def __init__(self, field):
        super().__init__()
        self.field = field

    def density(self, x, twice=False):
        sigma, code = self.field.density(x, twice)
        return torch.where(x.norm(dim=1) < 0.6, sigma, 0.0), code

    def color(self, code):
        return self.field.color(code)


def test_skipping_what_is_empty_changes_nothing():
    made, rays = nerf(), Rays.of(cameras(1, 2))
    field, G = Cut(made.field), 8
    middle = (torch.stack(torch.meshgrid(*[torch.arange(G)] * 3, indexing="ij"), -1) + 0.5) / G * 2 - 1
    full = middle.norm(dim=-1) < 0.6 + math.sqrt(3) / G
    sparse, whole = (along(rays, 40, None, cells) for cells in (full, None))
    assert len(sparse.t) < 0.6 * len(whole.t)
    first, second = (trace(field, rays, samples, normals=True) for samples in (sparse, whole))
    for name in ("rgb", "alpha", "length", "median", "variance", "normal", "away"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=1e-4, atol=1e-5)
    grads = (torch.autograd.grad(x.rgb.square().sum(), list(made.field.parameters())) for x in (first, second))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_pruning_changes_no_more_than_it_leaves_out():
    made, rays = nerf(), Rays.of(cameras(1, 2))
    samples = along(rays, 40)
    first, second = (trace(made.field, rays, samples, prune) for prune in (0.01, 0.0))
    assert 0 < float((first.alpha - second.alpha).detach().abs().max()) < 0.1
    exact = trace(made.field, rays, samples, 1e-12)
    torch.testing.assert_close(exact.rgb, second.rgb, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_large_pictures_in_parts_are_the_same(kind):
    made, seen = nerf(kind), cameras(1, 2)
    want = ("rgb", "alpha", "depth", "median_depth", "normal")
    whole, parts = NerfScene(made), NerfScene(made, points=24 * 17)
    views = [scene.render(seen, want) for scene in (whole, parts)]
    for name in want:
        torch.testing.assert_close(getattr(views[0], name), getattr(views[1], name), rtol=1e-4, atol=1e-5)
    grads = (torch.autograd.grad(x.rgb.square().sum(), list(made.field.parameters())) for x in views)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    size = torch.linalg.vector_norm(views[0].normal, dim=2, keepdim=True)
    assert ((size - 1).abs() < 1e-4)[views[0].alpha > 1e-3].all()
    facing = (views[0].normal * pixel_rays(seen)[1]).sum(2)
    assert (facing <= 1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind):
    field = nerf(kind).field.double()
    rays = Rays.of(cameras(1, 1, 2, 2))
    rays = Rays(*(x.double() for x in (rays.origin, rays.direction, rays.depth)))
    samples = along(rays, 6)
    parameters = list(field.parameters())
    names = [name for name, _ in field.named_parameters()]

    def seen(*values):
        def run(x):
            p = trace(Bound(field, dict(zip(names, values, strict=True))), rays, samples, normals=True)
            return p.rgb, p.alpha, p.length, p.median, p.variance, p.normal, p.away

        return run(None)

    few = [p for p in parameters if p.numel() < 100]
    large = [p.detach() for p in parameters if p.numel() >= 100]
    assert few and large
    sizes = [p.numel() < 100 for p in parameters]

    def small(*values):
        one, other = iter(values), iter(large)
        return seen(*(next(one) if short else next(other) for short in sizes))

    # `away` takes its weights as constants, so that it is left out
    assert torch.autograd.gradcheck(lambda *v: small(*v)[:-1], few, eps=1e-6, atol=1e-5, rtol=1e-3)
    move = [torch.randn(p.shape, generator=seeded(8), dtype=p.dtype) for p in parameters]
    far = 1e-6
    ends = [seen(*(p.detach() + s * far * m for p, m in zip(parameters, move, strict=True))) for s in (1, -1)]
    for i, (up, down, value) in enumerate(zip(*ends, seen(*parameters), strict=True)):
        grads = torch.autograd.grad(value.sum(), parameters, retain_graph=True, allow_unused=True)
        slope = sum(float((g * m).sum()) for g, m in zip(grads, move, strict=True) if g is not None)
        if i < 6:
            assert slope == pytest.approx(float((up - down).detach().sum() / (2 * far)), rel=1e-3, abs=1e-5), i


class Bound(torch.nn.Module):
    """A field with other parameters."""

    def __init__(self, field, values):
        super().__init__()
        self.__dict__["field"], self.__dict__["values"] = field, values

    def density(self, x, twice=False):
        return self.call("density", x, twice)

    def color(self, code):
        return self.call("color", code)

    def call(self, name, *args):
        wrapped = Named(self.field, name)
        values = {f"field.{key}": value for key, value in self.values.items()}
        return torch.func.functional_call(wrapped, values, args)


class Named(torch.nn.Module):
    def __init__(self, field, name):
        super().__init__()
        self.field, self.name = field, name

    def forward(self, *args):
        return getattr(self.field, self.name)(*args)


def test_normals_are_the_slope():
    x = torch.randn(30, 3, generator=seeded(2)) * 0.1
    x = x / x.norm(dim=1, keepdim=True) * 0.69
    with torch.no_grad():
        sigma, _, n = with_normals(Sphere(), x)
    assert not n.requires_grad and not sigma.requires_grad
    torch.testing.assert_close(n, x / 0.69, rtol=1e-3, atol=1e-3)


def test_rays_that_meet_nothing_have_a_gradient_of_zero():
    made = nerf()
    for pixels in (nothing(made.field, (rays := Rays.of(cameras(1, 1)))), away(made.field, rays)):
        assert (pixels.alpha == 0).all() and pixels.rgb.shape == (len(rays), 3)
        grads = torch.autograd.grad(pixels.rgb.sum() + pixels.alpha.sum(), list(made.field.parameters()))
        assert all((grad == 0).all() for grad in grads)


def away(field, rays):
    """What rays see that look the other way."""
    turned = Rays(rays.origin, -rays.direction, rays.depth)
    return trace(field, turned, along(turned, 24), 0.01)


def test_cells_hold_what_is_in_them():
    full = torch.zeros(4, 4, 4, dtype=torch.bool)
    full[0, 3, 2] = True
    x = torch.tensor([[-0.9, 0.9, 0.1], [-0.9, 0.9, 0.6], [0.9, -0.9, 0.1], [-1.0, 1.0, 0.49]])
    assert inside(x, full).tolist() == [True, False, False, True]


def test_penalties_are_the_published_ones():
    weights = Penalties(orient=(0.0, 10.0, 1000.0, 5000.0), opaque=(10.0, 0.0, 5.0, 10.0)).weights
    assert weights(0) == {"orient": 10.0} and weights(2500)["orient"] == pytest.approx(505)
    assert weights(9000) == {"orient": 1000.0, "opaque": 5.0}
    rays = Rays.of(cameras(B, 1))
    pixels = trace(nerf().field, rays, along(rays, 24), normals=True)
    o = pixels.alpha
    assert float(penalties.sparsity(pixels, B)) == pytest.approx(float((o**2 + 0.01).sqrt().mean()))
    o = o.clamp(1e-3, 1 - 1e-3)
    assert float(penalties.opaque(pixels, B)) == pytest.approx(float(F.binary_cross_entropy(o, o)), rel=1e-4)
    for term in (penalties.orient, penalties.z_variance):
        whole = term(pixels, B)
        halves = [trace(nerf().field, rays[part], along(rays[part], 24), normals=True) for part in halved(len(rays))]
        apart = sum(float(term(half, 1).detach()) for half in halves) / 2
        assert float(whole.detach()) == pytest.approx(apart, rel=1e-3, abs=1e-7)
        grads = torch.autograd.grad(whole, [pixels.away if term is penalties.orient else pixels.variance])
        assert grads[0].abs().max() > 0
    both = joined(halves)
    torch.testing.assert_close(both.alpha, pixels.alpha)


def halved(num):
    return slice(0, num // 2), slice(num // 2, num)


def test_an_unknown_channel_is_refused():
    with pytest.raises(ValueError, match="unknown channel 'glow'"):
        NerfScene(nerf()).render(cameras(), ("rgb", "glow"))
