"""A brute-force rasteriser in float64: every Gaussian at every pixel, textbook matrices, no tiles, no closed forms."""

import torch

from align3d.scenes.cameras import orbit
from align3d.scenes.raster import DEFAULT, RasterConfig
from align3d.types import CHANNELS, Cameras


def cameras(B: int = 2, V: int = 3, height: int = 21, width: int = 38, dtype=torch.float32) -> Cameras:
    """B V different cameras, with unequal focal lengths and principal points off the middle."""
    azimuth = torch.arange(B * V, dtype=dtype).reshape(B, V) * 57.0
    made = orbit(azimuth, azimuth * 0.3 - 20, height=height, width=width)
    K = made.K * torch.tensor([1.0, 1.1, 1.0], dtype=dtype)[:, None]
    K[..., 0, 2], K[..., 1, 2] = width / 2 + 1.5, height / 2 - 0.7
    return Cameras(made.c2w, K, height, width)


def gaussians(B: int = 2, N: int = 60, seed: int = 0, dtype=torch.float32) -> list[torch.Tensor]:
    """Random overlapping Gaussians; some have opacity 1, the quaternions are not of unit length."""
    g = torch.Generator().manual_seed(seed)
    opacities = 0.05 + 0.95 * torch.rand(B, N, generator=g, dtype=torch.float64)
    opacities[:, ::17] = 1
    inputs = [
        (torch.rand(B, N, 3, generator=g, dtype=torch.float64) - 0.5) * 0.9,
        0.6 * torch.randn(B, N, 4, generator=g, dtype=torch.float64),
        0.01 + 0.08 * torch.rand(B, N, 3, generator=g, dtype=torch.float64),
        opacities,
        torch.rand(B, N, 3, generator=g, dtype=torch.float64),
    ]
    return [x.to(dtype) for x in inputs]


def render(inputs, cams: Cameras, background=(1.0, 1.0, 1.0), config: RasterConfig = DEFAULT) -> dict:
    """All channels of all views, with autograd."""
    background = torch.tensor(background, dtype=inputs[0].dtype)
    B, V = cams.c2w.shape[:2]
    rows = []
    for b in range(B):
        for v in range(V):
            rows.append(_view([x[b] for x in inputs], cams.c2w[b, v], cams.K[b, v], cams, background, config))
    return {name: torch.stack([row[name] for row in rows]).unflatten(0, (B, V)) for name in CHANNELS}


def _view(inputs, c2w, K, cams, background, config):
    means, quats, scales, opacities, colors = inputs
    R = c2w[:3, :3].T
    d = means - c2w[:3, 3]
    front = (d @ R.T)[:, 2] > config.near
    means, quats, scales, opacities, colors, d = (x[front] for x in (means, quats, scales, opacities, colors, d))
    x, y, z = (d @ R.T).unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    sigma = _covariance(quats, scales, config.normalize_quats)
    u, v, zero = x / z, y / z, torch.zeros_like(z)
    # the projection's Jacobian, its ratios clamped 15 % of the image outside of it
    uc = u.clamp(-(cx + 0.15 * cams.width) / fx, (1.15 * cams.width - cx) / fx)
    vc = v.clamp(-(cy + 0.15 * cams.height) / fy, (1.15 * cams.height - cy) / fy)
    J = torch.stack([fx / z, zero, -fx * uc / z, zero, fy / z, -fy * vc / z], -1).unflatten(-1, (2, 3))
    flat = J @ R @ sigma @ R.T @ J.mT
    blurred = flat + config.eps2d * torch.eye(2).to(flat)
    if config.antialias:
        opacities = opacities * (torch.linalg.det(flat) / torch.linalg.det(blurred)).sqrt()
    conic = torch.linalg.inv(blurred)
    mean2d = torch.stack([fx * u + cx, fy * v + cy], dim=-1)
    # the plane of greatest density, and the slope of the distance to it
    m = torch.linalg.solve(sigma, d)
    m = m / m.norm(dim=-1, keepdim=True)
    mc = m @ R.T
    ray = torch.stack([u, v, torch.ones_like(u)], dim=-1)
    length = ray.norm(dim=-1)
    cos = (mc * ray).sum(-1)
    focal = torch.stack([fx, fy])
    slope = (length * z)[:, None] * (mc[:, :2] / cos[:, None] - ray[:, :2] / length[:, None] ** 2) / focal

    order = torch.argsort(z, stable=True)
    px = torch.arange(cams.width).to(K) + 0.5
    py = torch.arange(cams.height).to(K)[:, None] + 0.5
    pixel = torch.stack(torch.broadcast_tensors(px, py), dim=-1)
    offset = mean2d[order][:, None, None] - pixel
    power = 0.5 * torch.einsum("nhwi,nij,nhwj->nhw", offset, conic[order], offset)
    alpha = (opacities[order][:, None, None] * torch.exp(-power)).clamp(max=config.alpha_max)
    alpha = torch.where(alpha >= config.alpha_min, alpha, 0.0)
    distance = (z * length)[order][:, None, None] + torch.einsum("nhwi,ni->nhw", offset, slope[order])
    left, stopped = torch.ones_like(alpha[:0].sum(0)), torch.zeros(cams.height, cams.width, dtype=torch.bool)
    weights, median = [], torch.zeros_like(left)
    for a, t in zip(alpha, distance, strict=True):  # one Gaussian after the other, as the definition says
        stopped = stopped | (left * (1 - a) <= config.t_min)
        a = torch.where(stopped, 0.0, a)
        weights.append(a * left)
        median = torch.where((a > 0) & (left > 0.5), t, median)
        left = left * (1 - a)
    w = torch.stack(weights) if weights else alpha
    total = w.sum(0)
    pixel_ray = torch.sqrt(((px - cx) / fx) ** 2 + ((py - cy) / fy) ** 2 + 1)
    normal = torch.einsum("nhw,nc->chw", w, -m[order])
    hit = total > 0
    norm = torch.where(hit, normal.square().sum(0), 1.0).sqrt()
    return {
        "rgb": torch.einsum("nhw,nc->chw", w, colors[order]) + left * background[:, None, None],
        "alpha": total[None],
        "depth": torch.where(hit, (w * distance).sum(0) / torch.where(hit, total, 1.0) / pixel_ray, 0.0)[None],
        "median_depth": (median / pixel_ray)[None],
        "normal": torch.where(hit, normal / norm, 0.0),
    }


def _covariance(quats, scales, normalize):
    if normalize:
        quats = quats / quats.norm(dim=-1, keepdim=True)
    w, x, y, z = quats.unbind(-1)
    # R = I + 2 w [v]_x + 2 [v]_x^2, for the vector part v of the quaternion
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    R = torch.eye(3).to(quats) + 2 * w[:, None, None] * skew + 2 * skew @ skew
    return R @ torch.diag_embed(scales**2) @ R.mT
