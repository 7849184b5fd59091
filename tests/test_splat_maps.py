import math

import pytest
import torch

from align3d.models.splat_maps import SCALE_MAX, SCALE_MIN, SplatMaps, multiply, quaternion
from align3d.scenes.cameras import orbit


def rotations(num: int) -> torch.Tensor:
    q, _ = torch.linalg.qr(torch.randn(num, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return q * torch.linalg.det(q)[:, None, None]


def matrix(q: torch.Tensor) -> torch.Tensor:
    """Rotate the axes by q v q*."""
    conjugate = q * torch.tensor([1.0, -1, -1, -1], dtype=q.dtype)
    axes = torch.cat([torch.zeros(3, 1), torch.eye(3)], 1).to(q)
    rows = [multiply(multiply(q, a.expand_as(q)), conjugate)[..., 1:] for a in axes]
    return torch.stack(rows, -1)


def test_quaternion_of_a_rotation_rotates_like_it():
    R = torch.cat([rotations(20), torch.diag(torch.tensor([1.0, -1, -1], dtype=torch.float64))[None]])
    assert torch.allclose(matrix(quaternion(R)), R, atol=1e-12)


def test_product_is_composition():
    R = rotations(8)
    a, b = quaternion(R[:4]), quaternion(R[4:])
    assert torch.allclose(matrix(multiply(a, b)), R[:4] @ R[4:], atol=1e-12)


def cameras(height=5, width=7):
    azimuth = torch.tensor([[0.0, 90.0, 200.0]])
    return orbit(azimuth, torch.full_like(azimuth, 20.0), height=height, width=width)


def test_activations_and_order():
    maps = torch.zeros(2, 3, 12, 5, 7)
    maps[:, :, 3] = 1
    maps[:, :, 4] = -1
    maps[1, 2, 0, 4, 6] = 3.0  # clamped to 1
    maps[0, 1, 10, 2, 3] = -1
    g = SplatMaps().gaussians(maps, cameras())
    assert g.means.shape == (2, 3 * 5 * 7, 3)
    assert torch.allclose(g.scales[0, 0], torch.tensor([SCALE_MIN, SCALE_MAX, (SCALE_MIN + SCALE_MAX) / 2]))
    assert g.colors[1, -1, 0] == 1
    assert g.opacities[0, (1 * 5 + 2) * 7 + 3] == 0
    assert g.opacities[0, 0] == 0.5


def test_central_pixel_lies_on_the_axis_at_its_depth():
    g = SplatMaps().gaussians(torch.zeros(2, 3, 12, 5, 7), cameras())
    centres = g.means.view(2, 3, 5, 7, 3)[:, :, 2, 3]
    assert centres.abs().max() < 1e-5  # depth channel 0 is the distance of the origin
    corner = g.means.view(2, 3, 5, 7, 3)[0, 0, 2, 6] - g.means.view(2, 3, 5, 7, 3)[0, 0, 2, 0]
    assert math.isclose(corner[0], 1.4 / (1422.222 / 1024), rel_tol=1e-4)  # both end points: the full width


def test_camera_frame_quaternions_turn_with_the_camera():
    maps = torch.zeros(2, 3, 12, 5, 7)
    maps[:, :, 6] = 1  # identity
    local = SplatMaps(quaternions="camera").gaussians(maps, cameras())
    c2w = cameras().c2w[0, 1, :3, :3]
    assert torch.allclose(matrix(local.quats[0, 5 * 7].double()), c2w.double(), atol=1e-6)


def test_every_sample_and_channel_gets_a_gradient():
    maps = (0.5 * torch.rand(2, 3, 12, 5, 7)).requires_grad_()
    g = SplatMaps(quaternions="camera").gaussians(maps, cameras())
    sum(x.square().sum() for x in g.tensors).backward()
    assert maps.grad.isfinite().all()
    assert (maps.grad.abs().sum((3, 4)) > 0).all()


def test_threshold_drops():
    maps = torch.zeros(2, 3, 12, 5, 7)
    g = SplatMaps(opacity_threshold=0.5).gaussians(maps, cameras())
    assert (g.opacities == 0).all()


@pytest.mark.parametrize("device_views", [2, 4])
def test_wrong_number_of_views(device_views):
    with pytest.raises(ValueError, match="cameras, got 3"):
        SplatMaps().gaussians(torch.zeros(2, device_views, 12, 5, 7), cameras())
