"""From 3D Gaussians to 2D ones, in plain torch: the slow twin of csrc/project.h, and the channels of the gsplat branch.

A Gaussian with covariance Sigma = M M^T, M = R(q) diag(s), appears in the image as a 2D Gaussian (EWA splatting,
Zwicker et al. 2001). For depth and normals it is replaced by the plane of its points of greatest density along the
rays (RaDe-GS, Zhang et al. 2024), which has a closed form: with d = mean - camera centre, the plane's normal is
m = Sigma^-1 d, and the length of a ray to it is close to |d| + slope . (projected mean - pixel).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from align3d.scenes.cameras import world_to_camera

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from align3d.scenes.raster.config import RasterConfig
    from align3d.types import Cameras

SCALE_MIN = 1e-8  # scene units; below it a scale no longer turns the normal
DET_MIN = 1e-10  # pixels^4; thinner projections fall between pixel centres and are not drawn
PLANE_COS_MIN = 1e-7  # an ellipsoid seen exactly edge-on has no finite slope
TINY = 1e-20


class Planes(NamedTuple):
    """Where the rays meet each Gaussian."""

    normal: Float[Tensor, "B V N 3"]  # unit, world frame, facing the camera
    distance: Float[Tensor, "B V N"]  # from the camera centre to the mean
    slope: Float[Tensor, "B V N 2"]  # of the distance, per pixel of (mean2d - pixel)


class Projection(NamedTuple):
    """What a camera needs to know of each Gaussian; those that are not drawn have opacity 0."""

    mean2d: Float[Tensor, "B V N 2"]  # pixels
    conic: Float[Tensor, "B V N 3"]  # xx, xy, yy of the inverse 2D covariance, 1 / pixels^2
    opacity: Float[Tensor, "B V N"]
    half: Float[Tensor, "B V N 2"]  # half width and height of the box where alpha can reach alpha_min, pixels
    z: Float[Tensor, "B V N"]  # camera z
    planes: Planes


def rotation(quats: Float[Tensor, "*S 4"], normalize: bool) -> Float[Tensor, "*S 3 3"]:
    """The rotation polynomial of w, x, y, z; orthogonal only for unit quaternions."""
    if normalize:
        quats = quats / quats.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    w, x, y, z = quats.unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def planes(
    means: Float[Tensor, "B N 3"],
    R: Float[Tensor, "B N 3 3"],
    scales: Float[Tensor, "B N 3"],
    cameras: Cameras,
) -> Planes:
    """The plane of each Gaussian for each camera, without eigenvectors or matrix inverses.

    Sigma^-1 = C diag(1 / s^2) C^T / det(R)^2 with C the cofactors of R (R itself where R is orthogonal); only the
    direction of m matters, so the weights are (smallest scale / s)^2 <= 1, which float32 can hold.
    """
    cofactors = torch.stack([torch.linalg.cross(R[..., i - 2, :], R[..., i - 1, :]) for i in range(3)], dim=-2)
    scales = scales.clamp(min=SCALE_MIN)
    weights = (scales.amin(-1, keepdim=True).detach() / scales) ** 2
    w2c = world_to_camera(cameras)[..., :3, :3]
    d = means[:, None] - cameras.c2w[..., None, :3, 3]
    local = torch.einsum("bnij,bvni->bvnj", cofactors, d)
    m = torch.einsum("bnij,bvnj->bvni", cofactors, weights[:, None] * local)
    m = m / m.norm(dim=-1, keepdim=True).clamp(min=TINY)
    x, y, z = torch.einsum("bvij,bvnj->ibvn", w2c, d)
    z = torch.where(z > 0, z, 1.0)
    u, v = x / z, y / z
    cos = ((m * d).sum(-1) / z).clamp(min=PLANE_COS_MIN)
    distance = d.norm(dim=-1).clamp(min=TINY)
    mx, my, _ = torch.einsum("bvij,bvnj->ibvn", w2c, m)
    f = cameras.K[..., None, (0, 1), (0, 1)]
    ln2 = u * u + v * v + 1
    slope = torch.stack([mx / cos - u / ln2, my / cos - v / ln2], dim=-1) * (distance[..., None] / f)
    return Planes(-m, distance, slope)


def project(
    means: Float[Tensor, "B N 3"],
    quats: Float[Tensor, "B N 4"],
    scales: Float[Tensor, "B N 3"],
    opacities: Float[Tensor, "B N"],
    cameras: Cameras,
    config: RasterConfig,
) -> Projection:
    """Every Gaussian as every camera of its scene sees it. Gradient: to all tensors, cameras included."""
    R = rotation(quats, config.normalize_quats)
    w2c, K = world_to_camera(cameras), cameras.K[:, :, None]
    fx, fy, cx, cy = K[..., 0, 0], K[..., 1, 1], K[..., 0, 2], K[..., 1, 2]
    x, y, z = torch.einsum("bvij,bvnj->ibvn", w2c[..., :3, :3], means[:, None] - cameras.c2w[..., None, :3, 3])
    drawn = (z > config.near) & (opacities[:, None] >= config.alpha_min)
    safe = torch.where(drawn, z, 1.0)
    u, v = x / safe, y / safe
    # Far outside the image the linearised projection explodes: the ratios are clamped as in gsplat and Inria's code.
    mx, my = 0.15 * cameras.width / fx, 0.15 * cameras.height / fy
    uc = torch.minimum(torch.maximum(u, -cx / fx - mx), (cameras.width - cx) / fx + mx)
    vc = torch.minimum(torch.maximum(v, -cy / fy - my), (cameras.height - cy) / fy + my)
    W = w2c[:, :, None, :3, :3]
    row_x = (fx / safe)[..., None] * (W[..., 0, :] - uc[..., None] * W[..., 2, :])
    row_y = (fy / safe)[..., None] * (W[..., 1, :] - vc[..., None] * W[..., 2, :])
    M = R * scales[..., None, :]
    a, b = torch.einsum("bvni,bnij->bvnj", row_x, M), torch.einsum("bvni,bnij->bvnj", row_y, M)
    xx, xy, yy = (a * a).sum(-1), (a * b).sum(-1), (b * b).sum(-1)
    det0 = torch.linalg.cross(a, b).square().sum(-1)  # = xx yy - xy^2, without the cancellation
    det = det0 + config.eps2d * (xx + yy) + config.eps2d**2
    drawn = drawn & (det > DET_MIN)
    det = torch.where(drawn, det, 1.0)
    xx, yy = xx + config.eps2d, yy + config.eps2d
    opacity = torch.where(drawn, opacities[:, None], 0.0)
    if config.antialias:
        kept = torch.where(drawn & (det0 > 0), det0 / det, 1.0).sqrt()
        opacity = torch.where(det0 > 0, opacity * kept, 0.0)
    with torch.no_grad():
        reach = 2 * torch.log(opacity.clamp(min=config.alpha_min) / config.alpha_min) + 1e-4
        half = torch.sqrt(reach[..., None] * torch.stack([xx, yy], dim=-1))
    mean2d = torch.stack([fx * u + cx, fy * v + cy], dim=-1)
    conic = torch.stack([yy, -xy, xx], dim=-1) / det[..., None]
    return Projection(mean2d, conic, opacity, half, z, planes(means, R, scales, cameras))
