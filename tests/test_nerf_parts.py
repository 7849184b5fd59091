"""Parts of a neural radiance field: lookups, light, what is behind, which cells are empty, options."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_nerf import KINDS, SMALL, B, H, V, W, cameras, nerf, seeded
from torch.nn import functional as F

from align3d.rng import Streams
from align3d.scenes.nerf.background import Background, behind, harmonics
from align3d.scenes.nerf.fields import PRIMES, Field, begin
from align3d.scenes.nerf.fields import HashGrid as HashTable
from align3d.scenes.nerf.fields import TriPlane as Planes
from align3d.scenes.nerf.nerf import Nerf
from align3d.scenes.nerf.options import Backdrop, HashGrid, March, NerfOptions, Penalties, Shading, TriPlane
from align3d.scenes.nerf.shading import Light, lit


@pytest.mark.parametrize("kind", KINDS)
def test_lookups_that_can_be_differentiated_twice_are_the_same(kind):
    grid = nerf(kind).field.grid
    x = (2 * torch.rand(40, 3, generator=seeded(3)) - 1).requires_grad_(True)
    pull = torch.randn(40, grid.width, generator=seeded(4))
    found = [grid(x, twice) for twice in (False, True)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    leaves = [x, *grid.parameters()]
    grads = [torch.autograd.grad((pull * y).sum(), leaves) for y in found]
    for a, b in zip(*grads, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_published_hash_grid_has_its_sizes():
    options = HashGrid()
    with torch.device("meta"):
        grid = HashTable(options)
    assert grid.scales[1] / 16 + 1 / 16 == pytest.approx(1.447269237440378)
    assert grid.sides[0] == 16 and grid.sides[-1] == 4096 and grid.width == 32
    assert grid.sizes[0] == 16**3 and max(grid.sizes) == 1 << 19


def test_a_hash_is_that_of_tiny_cuda_nn():
    """Dense where there is room, else xor of the coordinates times primes in 32 bits."""
    grid = HashTable(HashGrid(levels=2, log2_size=9, coarsest=4, finest=40))
    y = torch.rand(20, 3, generator=seeded(1))
    for level, dense in ((0, True), (1, False)):
        place, weight = grid.corners(y, level)
        side, size = grid.sides[level], grid.sizes[level]
        for m in range(len(y)):
            spot = y[m] * grid.scales[level] + 0.5
            low = spot.floor().long().tolist()
            for n, (i, j, k) in enumerate([(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)]):
                a, b, c = low[0] + i, low[1] + j, low[2] + k
                hashed = (a * PRIMES[0] ^ b * PRIMES[1] ^ c * PRIMES[2]) & 0xFFFFFFFF
                assert int(place[m, n]) == (a + b * side + c * side**2 if dense else hashed) % size
                part = [1 - abs(float(spot[axis]) - at) for axis, at in enumerate((a, b, c))]
                assert float(weight[m, n]) == pytest.approx(math.prod(part), abs=1e-5)
    torch.testing.assert_close(weight.sum(1), torch.ones(20))


def test_planes_hold_a_point_at_their_corners():
    grid = Planes(TriPlane(side=5, features=1))
    with torch.no_grad():
        grid.planes.copy_(torch.arange(75.0).view(3, 1, 5, 5))
    corner = torch.tensor([[-1.0, 1.0, 0.0]])
    wanted = torch.tensor([[20.0, 25 + 10.0, 50 + 14.0]])  # xy at row 4, column 0; xz at 2, 0; yz at 2, 4
    for twice in (False, True):
        torch.testing.assert_close(grid(corner, twice), wanted)


def test_density_begins_as_a_blob():
    field = Field(SMALL)
    begin(field, seeded())
    x = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [0, 0, 1.0]])
    torch.testing.assert_close(field.density(x)[0], F.softplus(torch.tensor([10.0, 0.0, -10.0])), rtol=1e-2, atol=1e-3)
    (slope,) = torch.autograd.grad(field.density(y := torch.zeros(1, 3, requires_grad=True))[0].sum(), y)
    assert torch.isfinite(slope).all()


def test_cells_are_looked_at_in_some_updates_and_the_same_for_all_batches():
    options = replace(SMALL, march=replace(SMALL.march, every=4, warmup=8))
    one, two = (nerf(options=options) for _ in range(2))
    assert Nerf(options).full.all(), "before the first look"
    for update in range(14):
        before = one.taken.detach().clone()
        for made, rows in ((one, (0, 2)), (two, (0, 1)), (two, (1, 1))):
            made.look(Streams.batch(0, update, *rows))
        moved = (one.taken != before).float().mean()
        assert (moved > 0) == (update % 4 == 0) and (update != 12 or 0.1 < float(moved) < 0.6)
        assert torch.equal(one.taken, two.taken)
    assert 0 < float(one.full.float().mean()) < 1
    assert one.taken.grad is None and one.full.view(-1)[one.taken.argmax()]


def test_light_is_that_of_a_point():
    light = Light(torch.tensor([[0.0, 2, 0], [0, 0, 2]]), rays=1, diffuse=0.75, textureless=False)
    albedo, x = torch.full((2, 3), 0.4), torch.zeros(2, 3)
    n = torch.tensor([[0.0, 1, 0], [0, 0, -1]])
    torch.testing.assert_close(light(albedo, n, x, torch.arange(2)), torch.tensor([[0.4] * 3, [0.1] * 3]))
    bare = replace(light, textureless=True)
    torch.testing.assert_close(bare(albedo, n, x, torch.arange(2)), torch.tensor([[1.0] * 3, [0.25] * 3]))


def test_light_comes_as_often_as_told():
    seen, options = cameras(), Shading(start=10, albedo=0.25, textureless=0.5)
    assert (
        lit(options, seen, Streams.batch(0, 9, 0, B)) is None
        and lit(Shading(), seen, Streams.batch(0, 99, 0, B)) is None
    )
    lights = [lit(options, seen, Streams.batch(0, update, 0, B)) for update in range(10, 410)]
    there = [light for light in lights if light is not None]
    assert len(there) / 400 == pytest.approx(0.75, abs=0.06)
    assert sum(light.textureless for light in there) / len(there) == pytest.approx(0.5, abs=0.08)
    far = torch.stack([light.place for light in there]).norm(dim=-1)
    assert far.shape[1] == B * V and float(far.min()) >= 0.8 and float(far.max()) <= 1.5
    alone = lit(options, cameras(), Streams.batch(0, 11, 0, B))
    assert alone is None or alone.rays == H * W


def test_backgrounds():
    d = F.normalize(torch.randn(4000, 3, generator=seeded()), dim=1)
    product = harmonics(d).T @ harmonics(d) * 4 * math.pi / 4000
    torch.testing.assert_close(product, torch.eye(9), rtol=0, atol=0.15)
    network = Background()
    begin(network, seeded())
    streams = [Streams.batch(0, update, 0, 1) for update in range(200)]
    found = [behind(Backdrop("learned", random=0.5), network, d[:5], rng, (1.0, 1.0, 1.0)) for rng in streams]
    plain = [x for x in found if float(x.std(0).max()) == 0]
    assert len(plain) / 200 == pytest.approx(0.5, abs=0.1) and len({tuple(x[0].tolist()) for x in plain}) == len(plain)
    assert all(x.requires_grad for x in found if float(x.std(0).max()) > 0)
    assert (behind(Backdrop(), None, d[:5], streams[0], (0.1, 0.2, 0.3)) == torch.tensor([0.1, 0.2, 0.3])).all()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: NerfOptions(hidden=0), "scene.hidden must be 1 to 512"),
        (lambda: NerfOptions(blob=(float("nan"), 0.5)), "scene.blob"),
        (lambda: TriPlane(side=1), "scene.triplane.side"),
        (lambda: HashGrid(log2_size=60), "scene.hash.log2_size"),
        (lambda: HashGrid(coarsest=32, finest=16), "scene.hash.finest"),
        (lambda: March(samples=0), "scene.march.samples"),
        (lambda: March(decay=float("nan")), "scene.march.decay"),
        (lambda: Backdrop(random=2.0), "scene.backdrop.random"),
        (lambda: Shading(albedo=-1.0), "scene.shading.albedo"),
        (lambda: Penalties(orient=(5.0, 0.0, 1.0, 4.0)), "scene.penalties.orient must be START FROM TO END"),
    ],
)
def test_bad_options_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
