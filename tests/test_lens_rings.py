"""Cameras whose fields of view differ, and whose pictures grow."""

import math

import pytest
import torch

from align3d.rng import Streams
from align3d.scenes.lens_rings import LensRing


def centres(ring, num=400, update=0):
    cameras = ring(Streams.batch(3, update, 0, num))
    where = cameras.c2w[..., :3, 3]
    return cameras, where.norm(dim=-1), torch.rad2deg(torch.asin(where[..., 1] / where.norm(dim=-1)))


def test_distance_follows_the_lens():
    cameras, radius, elevation = centres(LensRing(views=3, size=(64,), grow=()))
    assert (cameras.height, cameras.width) == (64, 64) and cameras.c2w.shape == (400, 3, 4, 4)
    fov = 2 * torch.rad2deg(torch.atan(32 / cameras.K[..., 0, 0]))
    assert 15 <= float(fov.min()) < 17 and 58 < float(fov.max()) <= 60.001
    reach = radius * torch.tan(torch.deg2rad(fov) / 2)
    assert 0.4 <= float(reach.min()) < 0.41 and 0.49 < float(reach.max()) <= 0.5001
    for each in (fov, radius, elevation):
        assert float(each.std(1).max()) < 1e-3, "shared by the views of a row"
    where = cameras.c2w[..., :3, 3]
    azimuth = torch.rad2deg(torch.atan2(where[..., 0], where[..., 2]))
    torch.testing.assert_close(azimuth.diff(dim=1) % 360, torch.full((400, 2), 120.0), rtol=0, atol=1e-3)
    forward = cameras.c2w[..., :3, 2]
    torch.testing.assert_close(forward, -where / radius[..., None], rtol=0, atol=1e-5)


def test_elevations_published_and_corrected():
    """Half of them are even in degrees; the others on the sphere, or between 0 and asin(1 / 3) = 19.5 degrees."""
    for published, high in ((True, math.degrees(math.asin(1 / 3))), (False, 30.0)):
        ring = LensRing(published=published)
        _, _, elevation = centres(ring, 2000)
        assert float(elevation.min()) >= 0 and float(elevation.max()) <= 30.001
        u = torch.linspace(0, 1, 1001)
        assert float(ring.round(u).max()) == pytest.approx(high, abs=1e-3)
        mean = (15 + float(ring.round(u).mean())) / 2
        assert float(elevation.mean()) == pytest.approx(mean, abs=0.6)
    low, high = math.radians(-20), math.radians(80)
    rounded = LensRing(elevation=(-20.0, 80.0)).round(u)
    heights = torch.sin(torch.deg2rad(rounded))
    torch.testing.assert_close(heights, torch.linspace(math.sin(low), math.sin(high), 1001), rtol=0, atol=1e-5)


def test_elevations_of_one_kind():
    """All even in degrees, or all on the sphere; each from the same draw as with both kinds."""
    both, degrees, sphere = (centres(LensRing(elevation=(-60.0, 60.0), sphere=p))[2] for p in (0.5, 0.0, 1.0))
    torch.testing.assert_close(both, torch.where((both - degrees).abs() < 1e-3, degrees, sphere), rtol=0, atol=1e-3)
    assert 0.4 < float(((both - degrees).abs() < 1e-3).float().mean()) < 0.6
    for each, wanted in ((degrees, 120 / 12**0.5), (sphere, math.degrees(0.553))):
        assert float(each[:, 0].std()) == pytest.approx(wanted, rel=0.05)


def test_pictures_grow_and_nothing_else_changes():
    ring = LensRing(size=(16, 32, 48), grow=(5, 9))
    assert [ring(Streams.batch(0, update, 0, 1)).height for update in (-1, 0, 4, 5, 8, 9, 99)] == [
        16,
        16,
        16,
        32,
        32,
        48,
        48,
    ]
    small, large = LensRing(size=(16,), grow=()), LensRing(size=(32,), grow=())
    one, two = (r(Streams.batch(0, 7, 0, 2)) for r in (small, large))
    assert torch.equal(one.c2w, two.c2w)
    torch.testing.assert_close(2 * one.K[..., :2, :], two.K[..., :2, :])


def test_a_row_depends_on_its_own_stream():
    ring = LensRing()
    both, alone = ring(Streams.batch(0, 1, 0, 3)), ring(Streams.batch(0, 1, 2, 1))
    assert torch.equal(both.c2w[2:], alone.c2w) and torch.equal(both.K[2:], alone.K)


@pytest.mark.parametrize(
    "options",
    [
        {"views": 0},
        {"size": (), "grow": ()},
        {"size": (0,), "grow": ()},
        {"size": (8, 16), "grow": ()},
        {"size": (8, 16, 32), "grow": (9, 5)},
        {"size": (8, 16), "grow": (0,)},
        {"elevation": (30.0, 0.0)},
        {"fovy": (0.0, 30.0)},
        {"fovy": (15.0, float("nan"))},
        {"reach": (0.0, 1.0)},
        {"sphere": 1.5},
        {"sphere": float("nan")},
    ],
)
def test_bad_rings_are_refused(options):
    with pytest.raises(ValueError, match="cameras"):
        LensRing(**options)
