"""Times of the native rasteriser against its pure-torch twin and against gsplat's own pure-torch path.

    python benchmarks/raster.py [--scenes demo a b c] [--threads 2] [--repeats 5] [--gsplat FOLDER] [--only-native]

Scenes are bumpy spheres seen by pixel-aligned Gaussians, as DiffSplat makes them (kernel size 0, radius 1.4):
`a` 4 x 32 x 32 Gaussians at 64 pixels, `b` 4 x 64 x 64 at 128, `c` 4 x 256 x 256 at 256, always 4 views, and `demo`
8 scenes of 4 x 64 x 64 Gaussians, 2 views at 64 pixels. `c-init` is c as an untrained network would have it.

gsplat (an installed one, or the folder of an unpacked wheel: `pip download gsplat==1.5.3 --no-deps`) cannot render on
the CPU as it comes. Here its `_fully_fused_projection` and `accumulate` run as they are; what they need and the CPU
lacks is put in their place: the two functions of nerfacc, and the search for (Gaussian, pixel) pairs, which is not
counted in its time. It renders colour and alpha only.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align3d.scenes.cameras import FOCAL, canonical, orbit, pixel_rays, world_to_camera
from align3d.scenes.raster import DEFAULT, compile, native, rasterize
from align3d.scenes.raster.projection import project
from align3d.scenes.raster.torch_tiles import TILE, tile_lists
from align3d.types import CHANNELS, Cameras

SCENES = {  # scenes, Gaussian map side, image side, views, network outputs
    "demo": (8, 64, 64, 2, "trained"),
    "a": (1, 32, 64, 4, "trained"),
    "b": (1, 64, 128, 4, "trained"),
    "c": (1, 256, 256, 4, "trained"),
    "c-init": (1, 256, 256, 4, "init"),
}


def make(name: str) -> tuple[list[Tensor], Cameras]:
    """The Gaussians and cameras of a scene: one Gaussian per pixel of four canonical views."""
    num, side, size, views, kind = SCENES[name]
    g = torch.Generator().manual_seed(0)
    origin, direction = pixel_rays(canonical(1, side, side))
    b, dd = (origin * direction).sum(2), direction.square().sum(2)
    root = b * b - dd * (origin.square().sum(2) - 0.42**2)
    hit = (root > 0)[:, :, None]
    depth = torch.where(hit, (-b - root.clamp(min=0).sqrt())[:, :, None] / dd[:, :, None], 1.4)
    means = origin + depth * direction
    means = torch.where(hit, means * (1 + 0.02 * torch.sin(20 * means).prod(2, keepdim=True)), means)
    means = means.movedim(2, -1).reshape(1, -1, 3)
    N, hit = means.shape[1], hit.reshape(1, -1)
    if kind == "trained":
        scales = 1.4 / (FOCAL * side) * (0.45 + 0.6 * torch.rand(1, N, 3, generator=g))
        scales = (scales * torch.tensor([1.0, 1.0, 0.25])).clamp(0.0005, 0.02)
        opacities = torch.where(hit, 0.5 + 0.5 * torch.rand(1, N, generator=g), 0.02 * torch.rand(1, N, generator=g))
        n = means / means.norm(dim=-1, keepdim=True) + 0.2 * torch.randn(1, N, 3, generator=g)
        n = n / n.norm(dim=-1, keepdim=True)
        quats = torch.stack([1 + n[..., 2], -n[..., 1], n[..., 0], torch.zeros(1, N)], dim=-1)
    else:
        scales = 0.01025 * (0.9 + 0.2 * torch.rand(1, N, 3, generator=g))
        opacities = 0.119 * (0.9 + 0.2 * torch.rand(1, N, generator=g))
        quats = torch.randn(1, N, 4, generator=g)
    quats = quats / quats.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    inputs = [means, quats, scales, opacities, torch.rand(1, N, 3, generator=g)]
    azimuth = torch.arange(views) * (360.0 / views) + 7 * torch.arange(num)[:, None]
    cameras = orbit(azimuth, torch.full_like(azimuth, 11.5), height=size, width=size)
    return [x.repeat(num, *(1,) * (x.ndim - 1)) for x in inputs], cameras


def timed(run: Callable[[list[Tensor]], list[Tensor]], inputs: list[Tensor], repeats: int) -> tuple[float, float]:
    """The least milliseconds of a forward and of a backward pass."""
    forward, backward = [], []
    for _ in range(repeats + 1):
        leaves = [x.clone().requires_grad_() for x in inputs]
        start = time.perf_counter()
        outputs = run(leaves)
        forward.append(time.perf_counter() - start)
        grads = [torch.randn_like(x) for x in outputs]
        start = time.perf_counter()
        torch.autograd.backward(outputs, grads)
        backward.append(time.perf_counter() - start)
    skip = 1 if repeats > 1 else 0  # the first pass warms up, where there is another
    return min(forward[skip:]) * 1e3, min(backward[skip:]) * 1e3


def ours(cameras: Cameras, backend: str, want: tuple[str, ...]) -> Callable[[list[Tensor]], list[Tensor]]:
    """A run of our rasteriser."""

    def run(leaves: list[Tensor]) -> list[Tensor]:
        views = rasterize(*leaves, cameras, want=want, backend=backend)
        return [getattr(views, name) for name in want]

    return run


def load_gsplat(folder: str | None) -> Any | None:
    """Gsplat's pure-torch module, without importing the package, which would try to compile CUDA code."""
    spec = importlib.util.find_spec("gsplat") if folder is None else None
    root = Path(folder) if folder else Path(spec.origin).parent if spec and spec.origin else None
    path = next((p for p in (root, root / "gsplat") if (p / "cuda/_torch_impl.py").exists()), None) if root else None
    if path is None:
        return None
    spec = importlib.util.spec_from_file_location("_gsplat_torch_impl", path / "cuda/_torch_impl.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def render_weight_from_alpha(alphas: Tensor, ray_indices: Tensor, n_rays: int) -> tuple[Tensor, Tensor]:
        passes = torch.log1p(-alphas)
        before = torch.cumsum(passes.double(), 0) - passes
        first = torch.ones_like(ray_indices, dtype=torch.bool)
        first[1:] = ray_indices[1:] != ray_indices[:-1]
        left = torch.exp(before - before[first][torch.cumsum(first.long(), 0) - 1]).to(alphas)
        return alphas * left, left

    def accumulate_along_rays(weights: Tensor, values: Tensor | None, ray_indices: Tensor, n_rays: int) -> Tensor:
        source = weights[:, None] if values is None else weights[:, None] * values
        return source.new_zeros(n_rays, source.shape[1]).index_add(0, ray_indices, source)

    sys.modules["nerfacc"] = types.SimpleNamespace(
        render_weight_from_alpha=render_weight_from_alpha, accumulate_along_rays=accumulate_along_rays
    )
    return module


@torch.no_grad()
def find_pairs(inputs: list[Tensor], cameras: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian, pixel and image of every visible (Gaussian, pixel) pair, front to back within a pixel."""
    p = project(*inputs[:4], cameras, DEFAULT)
    lists, across, down = tile_lists(p, cameras.height, cameras.width), *(-(-s // TILE) for s in _size(cameras))
    tile = torch.repeat_interleave(lists.count)
    step = torch.arange(TILE)
    mean, conic, opacity = p.mean2d.flatten(0, 2), p.conic.flatten(0, 2), p.opacity.flatten()
    found = []
    for rows, t in zip(lists.rows.split(200_000), tile.split(200_000), strict=True):
        x = (t % across * TILE)[:, None] + step.repeat(TILE)
        y = (t // across % down * TILE)[:, None] + step.repeat_interleave(TILE)
        dx, dy, c = x + 0.5 - mean[rows, :1], y + 0.5 - mean[rows, 1:], conic[rows]
        power = 0.5 * (c[:, :1] * dx * dx + c[:, 2:] * dy * dy) + c[:, 1:2] * dx * dy
        alpha = opacity[rows, None] * torch.exp(-power)
        seen = (alpha >= DEFAULT.alpha_min) & (x < cameras.width) & (y < cameras.height)
        which, pixel = seen.nonzero(as_tuple=True)
        N = p.z.shape[-1]
        found.append([rows[which] % N, (y * cameras.width + x)[which, pixel], rows[which] // N])
    gaussian, pixel, image = (torch.cat(x) for x in zip(*found, strict=True))
    order = torch.sort(image * cameras.height * cameras.width + pixel, stable=True).indices
    return gaussian[order], pixel[order], image[order]


def _size(cameras: Cameras) -> tuple[int, int]:
    return cameras.width, cameras.height


def gsplat_torch(module: Any, inputs: list[Tensor], cameras: Cameras) -> Callable[[list[Tensor]], list[Tensor]]:
    """A run of gsplat's own torch code: projection and compositing of given pairs."""
    pairs, w2c = find_pairs(inputs, cameras), world_to_camera(cameras)
    V = cameras.c2w.shape[1]

    def run(leaves: list[Tensor]) -> list[Tensor]:
        means, quats, scales, opacities, colors = leaves
        covars, _ = module._quat_scale_to_covar_preci(quats, scales, True, False, triu=False)
        _, mean2d, _, conics, _ = module._fully_fused_projection(
            means, covars, w2c, cameras.K, cameras.width, cameras.height, eps2d=0.0
        )
        opacities = opacities[:, None].expand(-1, V, -1)
        colors = colors[:, None].expand(-1, V, -1, -1)
        return list(module.accumulate(mean2d, conics, opacities, colors, *pairs, cameras.width, cameras.height))

    return run


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", nargs="+", default=["demo", "a", "b", "c"], choices=SCENES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gsplat", help="folder of an unpacked gsplat wheel")
    parser.add_argument("--only-native", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    gsplat = None if args.only_native else load_gsplat(args.gsplat)
    if gsplat is None and not args.only_native:
        print("gsplat is neither installed nor given (--gsplat FOLDER): skipped")
    start = time.perf_counter()
    native.library()
    print(f"{compile.isa()}, {args.threads} threads, library ready in {time.perf_counter() - start:.1f} s")
    print(f"{'scene':8s} {'backend':22s} {'forward ms':>11s} {'backward ms':>12s} {'times native':>18s}")
    for name in args.scenes:
        inputs, cameras = make(name)
        rows = {
            "native": timed(ours(cameras, "native", CHANNELS), inputs, args.repeats * 4),
            "native, rgb and alpha": timed(ours(cameras, "native", ("rgb", "alpha")), inputs, args.repeats * 4),
        }
        slow = 1 if name.startswith("c") else args.repeats
        if not args.only_native:
            rows["torch"] = timed(ours(cameras, "torch", CHANNELS), inputs, slow)
            rows["torch, rgb and alpha"] = timed(ours(cameras, "torch", ("rgb", "alpha")), inputs, slow)
        if gsplat is not None:
            rows["gsplat torch, rgb"] = timed(gsplat_torch(gsplat, inputs, cameras), inputs, slow)
        for backend, (forward, backward) in rows.items():
            base = rows["native, rgb and alpha" if "rgb" in backend else "native"]
            ratio = "" if backend.startswith("native") else f"{forward / base[0]:8.0f} {backward / base[1]:8.0f}"
            print(f"{name:8s} {backend:22s} {forward:11.1f} {backward:12.1f} {ratio:>18s}", flush=True)


if __name__ == "__main__":
    main()
