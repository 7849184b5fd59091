"""The CUDA rasteriser: gsplat, with depth and normals as six extra feature channels.

gsplat knows neither RaDe-GS's depth nor its normals, but both are sums of per-Gaussian numbers along the ray. A normal
is three channels as it is. The distance along a ray is affine in the pixel (see projection.py),
`a - p . (pixel - principal point)` with `a = distance + p . (mean2d - principal point)`, so the sums of `a` and of the
two components of `p` give it exactly; autograd does the rest.

What gsplat fixes when it is compiled: alpha_min 1/255 and t_min 1e-4 (other values are refused), and the largest alpha,
0.999 in version 1.5.3 whatever `alpha_max` says: at most 0.009 of difference in the middle of an opaque splat.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

import torch

from align3d.scenes.cameras import to_device, world_to_camera
from align3d.scenes.raster import torch_tiles
from align3d.scenes.raster.projection import planes, rotation
from align3d.types import Cameras, Views

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.scenes.raster.config import RasterConfig

ALPHA_MIN, T_MIN = 1 / 255, 1e-4  # gsplat's own


def render(
    means: Float[Tensor, "B N 3"],
    quats: Float[Tensor, "B N 4"],
    scales: Float[Tensor, "B N 3"],
    opacities: Float[Tensor, "B N"],
    colors: Float[Tensor, "B N 3"],
    cameras: Cameras,
    want: tuple[str, ...],
    background: tuple[float, ...],
    config: RasterConfig,
    shift: Float[Tensor, "B V N 2"] | None = None,
) -> Views:
    """See `align3d.scenes.raster.rasterize`. Gradient: to the five Gaussian tensors.

    The shift is taken for zero. Its gradient, which needs a leaf, comes with `backward()` alone: gsplat projects and
    draws in one function.

    Raises:
        ValueError: Without gsplat, off CUDA, for median depth, for settings that gsplat has fixed, and for cameras
            that want a gradient.
    """
    if means.device.type != "cuda":
        raise ValueError(f"raster backend 'gsplat' needs CUDA tensors, got {means.device}; use 'auto'")
    check(cameras, want, config)
    if problem() is not None:
        raise ValueError(f"raster backend 'gsplat' cannot be had: {problem()}; or use backend='torch'")
    from gsplat import rasterization

    gaussians = tuple(x.float() for x in (means, quats, scales, opacities, colors))
    return compose(rasterization, gaussians, cameras, want, background, config, shift)


@functools.cache
def problem() -> str | None:
    """Why gsplat cannot be had on this machine, or None. Its CUDA code is compiled if need be: minutes, once."""
    if importlib.util.find_spec("gsplat") is None:
        return "gsplat is not installed; pip install 'align3d[cuda]'"
    try:
        compiled = importlib.import_module("gsplat.cuda._backend")._C  # the public functions look here on first use
    except Exception as error:  # whatever a compiler, a linker or a loader has to say
        said = next(iter(str(error).splitlines()), type(error).__name__)
        return f"gsplat's CUDA code cannot be compiled or loaded ({said}); install a build of gsplat for this torch"
    if compiled is None:
        return "gsplat finds no CUDA toolkit to compile its CUDA code with; install nvcc, or a built gsplat"
    return None


def limit(want: Sequence[str], config: RasterConfig) -> str | None:
    """What of a request gsplat cannot do, or None."""
    if "median_depth" in want:
        return "gsplat has no median depth"
    if config.alpha_min != ALPHA_MIN or config.t_min != T_MIN:
        return (
            f"gsplat has alpha_min {ALPHA_MIN:.5f} and t_min {T_MIN} built in, got {config.alpha_min} "
            f"and {config.t_min}"
        )
    return None


def check(cameras: Cameras, want: Sequence[str], config: RasterConfig) -> None:
    """Refuse what gsplat cannot do.

    Raises:
        ValueError: Naming the request and the remedy.
    """
    if limit(want, config) is not None:
        raise ValueError(f"raster backend 'gsplat' cannot do this: {limit(want, config)}; use backend='torch' or auto")
    if torch.is_grad_enabled() and (cameras.c2w.requires_grad or cameras.K.requires_grad):
        raise ValueError("raster backend 'gsplat' gives cameras no gradient; use backend='torch' or detach them")


def compose(
    rasterization: Callable[..., Any],
    gaussians: tuple[Tensor, ...],
    cameras: Cameras,
    want: tuple[str, ...],
    background: tuple[float, ...],
    config: RasterConfig,
    shift: Float[Tensor, "B V N 2"] | None = None,
) -> Views:
    """Renders with a function that has the signature of `gsplat.rasterization`."""
    means, quats, scales, opacities, colors = gaussians
    if means.shape[1] == 0:
        return torch_tiles.render(*gaussians, cameras, want, background, config, shift)
    seen = to_device(cameras, means)
    geometry = any(name not in ("rgb", "alpha") for name in want)
    features = channels(means, quats, scales, colors, seen, config) if geometry else colors
    covars = None
    if not config.normalize_quats:  # gsplat would normalise them
        M = rotation(quats, normalize=False) * scales[..., None, :]
        covars = M @ M.mT
    sums, alpha, about = rasterization(
        means,
        quats,
        scales,
        opacities,
        features,
        world_to_camera(seen),
        seen.K,
        seen.width,
        seen.height,
        near_plane=config.near,
        eps2d=config.eps2d,
        packed=False,
        rasterize_mode="antialiased" if config.antialias else "classic",
        covars=covars,
    )
    if shift is not None and shift.requires_grad and about["means2d"].requires_grad:
        about["means2d"].register_hook(lambda grad: torch.autograd.backward([shift], [grad.reshape(shift.shape)]))
    return torch_tiles.finish(gather(sums, alpha, seen, geometry), seen, want, background)


def channels(
    means: Float[Tensor, "B N 3"],
    quats: Float[Tensor, "B N 4"],
    scales: Float[Tensor, "B N 3"],
    colors: Float[Tensor, "B N 3"],
    cameras: Cameras,
    config: RasterConfig,
) -> Float[Tensor, "B V N 9"]:
    """For each view, what to composite: rgb, world normal, and the affine distance (a, p_u, p_v)."""
    plane = planes(means, rotation(quats, config.normalize_quats), scales, cameras)
    w2c = world_to_camera(cameras)[..., :3, :3]
    x, y, z = torch.einsum("bvij,bvnj->ibvn", w2c, means[:, None] - cameras.c2w[..., None, :3, 3])
    z = torch.where(z > config.near, z, 1.0)
    offset = torch.stack([x / z, y / z], dim=-1) * cameras.K[..., None, (0, 1), (0, 1)]
    a = plane.distance + (plane.slope * offset).sum(-1)
    rgb = colors[:, None].expand_as(plane.normal)
    return torch.cat([rgb, plane.normal, a[..., None], plane.slope], dim=-1)


def gather(
    sums: Float[Tensor, "B V H W C"], alpha: Float[Tensor, "B V H W 1"], cameras: Cameras, geometry: bool
) -> Float[Tensor, "B V H W 9"]:
    """Composited channels, C = 9 or 3, as the sums that `torch_tiles.finish` takes; no median."""
    left, zero = 1 - alpha, torch.zeros_like(alpha)
    if not geometry:
        return torch.cat([sums, zero.expand(*zero.shape[:-1], 4), left, zero], dim=-1)
    K = cameras.K[:, :, None, None]
    x = torch.arange(cameras.width, device=K.device) + 0.5 - K[..., 0, 2]
    y = torch.arange(cameras.height, device=K.device)[:, None] + 0.5 - K[..., 1, 2]
    rgb_normal, a, p_u, p_v = sums.split([6, 1, 1, 1], dim=-1)
    return torch.cat([rgb_normal, a - x[..., None] * p_u - y[..., None] * p_v, left, zero], dim=-1)
