import math

import pytest
import torch

from align3d.rng import Streams
from align3d.scenes.cameras import (
    AZIMUTHS,
    CameraSampling,
    canonical,
    four_sides,
    look_at,
    orbit,
    pixel_rays,
    to_device,
    unproject,
    world_to_camera,
)


def project(cameras, point):
    """Pixel and depth of one world point in every camera, by the definition of K."""
    camera = world_to_camera(cameras) @ torch.tensor([*point, 1.0])
    pixel = (cameras.K @ camera[..., :3, None])[..., 0]
    return pixel[..., :2] / pixel[..., 2:], pixel[..., 2]


def two_by_three(height=37, width=43):
    azimuth = torch.tensor([[0.0, 90.0, 200.0], [10.0, 50.0, 300.0]])
    return orbit(azimuth, torch.tensor([[10.0, -20.0, 0.0], [90.0, -90.0, 45.0]]), height=height, width=width)


def test_azimuth_0_sees_x_to_the_right_and_y_up():
    cameras = orbit(torch.zeros(1, 1), torch.zeros(1, 1), height=40, width=60)
    assert torch.allclose(cameras.c2w[0, 0, :3, 3], torch.tensor([0.0, 0.0, 1.4]))
    right, depth = project(cameras, (0.1, 0.0, 0.0))
    top, _ = project(cameras, (0.0, 0.1, 0.0))
    assert right[0, 0, 0] > 30 and right[0, 0, 1] == 20
    assert top[0, 0, 1] < 20 and top[0, 0, 0] == 30
    assert torch.allclose(depth, torch.tensor(1.4))
    assert torch.allclose(right[0, 0, 0] - 30, 20 - top[0, 0, 1])  # square pixels


def test_azimuth_90_is_on_x_and_elevation_is_above():
    cameras = orbit(torch.tensor([[90.0, 0.0]]), torch.tensor([[0.0, 30.0]]), radius=2.0)
    assert torch.allclose(cameras.c2w[0, 0, :3, 3], torch.tensor([2.0, 0.0, 0.0]), atol=1e-6)
    up = 2 * torch.tensor([0.0, 0.5, math.sqrt(0.75)])
    assert torch.allclose(cameras.c2w[0, 1, :3, 3], up, atol=1e-6)


def test_orbit_poses_are_rigid_look_at_the_origin_and_keep_up_up():
    cameras = two_by_three()
    R = cameras.c2w[..., :3, :3]
    assert torch.allclose(R @ R.mT, torch.eye(3).expand_as(R), atol=1e-6)
    assert torch.allclose(torch.linalg.det(R), torch.ones(2, 3), atol=1e-6)
    pixel, depth = project(cameras, (0.0, 0.0, 0.0))
    assert torch.allclose(pixel, torch.tensor([21.5, 18.5]).expand(2, 3, 2), atol=1e-4)
    assert torch.allclose(depth, torch.full((2, 3), 1.4), atol=1e-6)
    assert bool((cameras.c2w[..., 1, 1] <= 1e-6).all())  # the image's down never points up
    assert torch.allclose(world_to_camera(cameras) @ cameras.c2w, torch.eye(4).expand(2, 3, 4, 4), atol=1e-6)


def test_field_of_view_does_not_depend_on_the_height():
    assert torch.equal(two_by_three(37, 43).K[..., 0, 0], two_by_three(20, 43).K[..., 0, 0])
    assert torch.allclose(two_by_three(37, 43).K[..., 1, 1], torch.tensor(43 * 1422.222 / 1024))


def test_look_at_equals_orbit_and_refuses_a_lost_horizon():
    azimuth, elevation = torch.tensor([[0.0, 77.0]]), torch.tensor([[12.0, -40.0]])
    cameras = orbit(azimuth, elevation)
    assert torch.allclose(look_at(cameras.c2w[..., :3, 3]), cameras.c2w, atol=1e-6)
    with pytest.raises(ValueError, match="horizon"):
        look_at(torch.tensor([[0.0, 1.0, 0.0]]))
    with pytest.raises(ValueError, match="horizon"):
        look_at(torch.tensor([[0.1, 0.2, 0.3]]), target=(0.1, 0.2, 0.3))


def test_unprojected_points_project_back_to_their_pixels():
    cameras = two_by_three()
    depth = 0.5 + torch.rand(2, 3, 1, 37, 43)
    points = unproject(cameras, depth)
    local = torch.einsum("bvij,bvjhw->bvihw", cameras.K @ world_to_camera(cameras)[..., :3, :3], points)
    local = local + (cameras.K @ world_to_camera(cameras)[..., :3, 3:])[..., None]
    assert torch.allclose(local[:, :, 2:], depth, atol=1e-5)
    y, x = torch.meshgrid(torch.arange(37) + 0.5, torch.arange(43) + 0.5, indexing="ij")
    pixel = (local[:, :, :2] / local[:, :, 2:]).expand(2, 3, 2, 37, 43)
    assert torch.allclose(pixel, torch.stack([x, y]).expand_as(pixel), atol=1e-3)
    assert pixel_rays(cameras)[0].shape == (2, 3, 3, 1, 1)


def test_canonical_views_are_the_four_azimuths():
    cameras = canonical(2, 8, 9)
    assert cameras.c2w.shape == (2, 4, 4, 4) and (cameras.height, cameras.width) == (8, 9)
    centre = cameras.c2w[0, :, :3, 3]
    azimuth = torch.rad2deg(torch.atan2(centre[:, 0], centre[:, 2])) % 360
    assert torch.allclose(azimuth, torch.tensor(AZIMUTHS), atol=1e-4)
    assert torch.allclose(torch.rad2deg(torch.asin(centre[:, 1] / 1.4)), torch.tensor(10.0), atol=1e-4)


def angles(cameras):
    centre = cameras.c2w[..., :3, 3]
    azimuth = torch.rad2deg(torch.atan2(centre[..., 0], centre[..., 2]))
    return azimuth, torch.rad2deg(torch.asin(centre[..., 1] / centre.norm(dim=-1)))


def test_sampled_cameras_stay_in_their_ranges_and_fill_them():
    sampling = CameraSampling(
        views=2, size=(6, 8), azimuth_jitter=30.0, elevation=20.0, elevation_jitter=10.0, radius=1.5
    )
    cameras = sampling(Streams.batch(0, 0, 0, 200))
    assert cameras.c2w.shape == (200, 2, 4, 4) and (cameras.height, cameras.width) == (6, 8)
    azimuth, elevation = angles(cameras)
    off = (azimuth + 45) % 90 - 45  # from the nearest canonical azimuth
    assert 25 < off.max() <= 30.001 and -30.001 <= off.min() < -25
    assert 29 < elevation.max() <= 30.001 and 9.999 <= elevation.min() < 11
    assert torch.allclose(cameras.c2w[..., :3, 3].norm(dim=-1), torch.tensor(1.5), atol=1e-5)
    nearest = (((azimuth + 45) % 360) // 90).long()
    assert bool((nearest[:, 0] != nearest[:, 1]).all())  # a subset, without repetition
    assert bool((torch.bincount(nearest.flatten(), minlength=4) > 60).all())


def test_sampled_cameras_do_not_depend_on_the_batch_split():
    sampling = CameraSampling()
    whole = sampling(Streams.batch(3, 5, 0, 4))
    parts = [sampling(Streams.batch(3, 5, first, 2)) for first in (0, 2)]
    assert torch.equal(whole.c2w, torch.cat([p.c2w for p in parts]))
    assert not torch.equal(whole.c2w, sampling(Streams.batch(3, 6, 0, 4)).c2w)
    assert (whole.height, whole.width) == (64, 64)


def test_all_four_views_without_jitter_are_the_canonical_ones():
    cameras = CameraSampling(views=4, azimuth_jitter=0.0, elevation=10.0, elevation_jitter=0.0, size=256)
    assert torch.allclose(cameras(Streams.batch(0, 0, 0, 2)).c2w, canonical(2).c2w, atol=1e-6)
    still, middle = four_sides((20, 28))(Streams.batch(0, 0, 0, 2)), CameraSampling().elevation
    assert torch.allclose(still.c2w, canonical(2, 20, 28, middle).c2w, atol=1e-6)
    assert (still.height, still.width) == (20, 28) and four_sides().size == CameraSampling().size


@pytest.mark.parametrize(
    "bad",
    [
        {"views": 0},
        {"views": 5},
        {"size": 0},
        {"size": (4, 0)},
        {"azimuth_jitter": -1.0},
        {"azimuth_jitter": float("inf")},
        {"elevation": 85.0},
        {"elevation": -40.0, "elevation_jitter": 51.0},
        {"elevation": float("nan")},
        {"elevation_jitter": float("nan")},
        {"radius": 0.0},
        {"focal": float("inf")},
    ],
)
def test_bad_sampling_is_refused(bad):
    with pytest.raises(ValueError, match="cameras"):
        CameraSampling(**bad)


def test_cameras_may_reach_the_poles():
    cameras = CameraSampling(elevation=80.0, elevation_jitter=10.0)(Streams.batch(0, 0, 0, 2))
    assert (angles(cameras)[1] > 69).all()


def test_to_device_changes_the_type():
    there = two_by_three()
    assert to_device(there, torch.zeros(())) is there
    assert to_device(two_by_three(), torch.zeros((), dtype=torch.float64)).K.dtype == torch.float64
