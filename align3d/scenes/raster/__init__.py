"""Differentiable rendering of 3D Gaussians: one function, three backends that agree in value and gradient.

`native` is C++ for the CPU, `torch` is plain PyTorch and works everywhere (it is also the oracle), `gsplat` is CUDA.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING

from align3d.scenes.raster.config import DEFAULT, MAX_SIDE, RasterConfig
from align3d.types import CHANNELS, Cameras, Views

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

__all__ = ["BACKENDS", "DEFAULT", "RasterConfig", "check_gaussians", "choose_backend", "rasterize"]

BACKENDS = {  # name -> module with render(means, quats, scales, opacities, colors, cameras, want, background, config,
    # shift)
    "native": "align3d.scenes.raster.native",
    "torch": "align3d.scenes.raster.torch_tiles",
    "gsplat": "align3d.scenes.raster.gsplat",
}


def rasterize(
    means: Float[Tensor, "B N 3"],
    quats: Float[Tensor, "B N 4"],
    scales: Float[Tensor, "B N 3"],
    opacities: Float[Tensor, "B N"],
    colors: Float[Tensor, "B N 3"],
    cameras: Cameras,
    *,
    want: Sequence[str] = ("rgb", "alpha"),
    background: Sequence[float] = (1.0, 1.0, 1.0),
    config: RasterConfig = DEFAULT,
    backend: str = "auto",
    shift: Float[Tensor, "B V N 2"] | None = None,
) -> Views:
    """Renders V views of each of B clouds of Gaussians.

    Args:
        means: Centres, world frame.
        quats: Rotations w, x, y, z; see `config.normalize_quats`.
        scales: Standard deviations along the three axes, scene units, positive (linear, not logarithms).
        opacities: In [0, 1].
        colors: Plain RGB, the same from all sides.
        cameras: (B, V); moved to the device of `means`.
        want: Fields of Views to fill; asking for rgb and alpha only is faster.
        background: RGB behind the scene.
        config: What the backends have to agree on.
        backend: "native", "torch", "gsplat", or "auto" (see `choose_backend`).
        shift: Pixels, right and down, by which each Gaussian is moved in each view after its projection; its shape
            stays. Zeros that want a gradient tell how much each view pulls at each Gaussian.

    Returns:
        Views with the wanted fields. Depth, median depth and normals are 0 where no Gaussian is hit.

    Raises:
        ValueError: On shapes that do not fit, unknown channels or backends, and backends that cannot do this.

    Gradient: to the five Gaussian tensors and the shift; to the cameras with backend "torch" only. Depth and normals
        follow RaDe-GS (Zhang et al. 2024): the plane of each ellipsoid's points of greatest density along the rays.
    """
    _check(means, quats, scales, opacities, colors, cameras, want, background)
    if shift is not None and shift.shape != (*cameras.c2w.shape[:2], means.shape[1], 2):
        expected = (*cameras.c2w.shape[:2], means.shape[1], 2)
        raise ValueError(f"shift must be (B, V, N, 2) = {expected}, got {tuple(shift.shape)}")
    name = choose_backend(means.device.type, want, config) if backend == "auto" else backend
    if name not in BACKENDS:
        raise ValueError(f"unknown raster backend {name!r}; known: auto, {', '.join(BACKENDS)}")
    render = importlib.import_module(BACKENDS[name]).render
    gaussians = (means, quats, scales, opacities, colors)
    return render(*gaussians, cameras, tuple(dict.fromkeys(want)), tuple(background), config, shift)


def choose_backend(device: str = "cpu", want: Sequence[str] = (), config: RasterConfig = DEFAULT) -> str:
    """The backend that "auto" stands for: gsplat on CUDA, native on the CPU, torch where these cannot be had.

    Warns when it falls back to torch, and says why.

    Args:
        device: Type of the device of the Gaussians.
        want: What is to be rendered; gsplat cannot render everything.
        config: How; gsplat has some of it built in.
    """
    if device == "cuda":
        from align3d.scenes.raster import gsplat

        problem, fast = gsplat.limit(want, config) or gsplat.problem(), "gsplat"
    elif device == "cpu":
        from align3d.scenes.raster import native

        problem, fast = native.problem(), "native"
    else:
        return "torch"
    if problem is None:
        return fast
    message = f"rendering with plain torch, 20 to 50 times slower than {fast}: {problem}"
    warnings.warn(message, RuntimeWarning, stacklevel=3)
    return "torch"


def _check(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    cameras: Cameras,
    want: Sequence[str],
    background: Sequence[float],
) -> None:
    check_gaussians(means, quats, scales, opacities, colors)
    B = means.shape[0]
    if cameras.c2w.ndim != 4 or cameras.c2w.shape[0] != B:
        raise ValueError(
            f"cameras must be (B, V, 4, 4) for the B = {B} scenes they look at, got {tuple(cameras.c2w.shape)}"
        )
    if not (1 <= cameras.height <= MAX_SIDE and 1 <= cameras.width <= MAX_SIDE):
        raise ValueError(f"images must be 1 to {MAX_SIDE} pixels a side, got {cameras.height} x {cameras.width}")
    unknown = [name for name in want if name not in CHANNELS]
    if unknown or isinstance(want, str):
        raise ValueError(f"want must be a sequence of {', '.join(CHANNELS)}; got {want!r}")
    if len(background) != 3:
        raise ValueError(f"background must be three numbers, got {background!r}")


def check_gaussians(means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor) -> None:
    """Check that five tensors describe the same (B, N) Gaussians.

    Raises:
        ValueError: If a shape does not fit or the devices differ.
    """
    if means.ndim != 3 or means.shape[-1] != 3:
        raise ValueError(f"Gaussian means must be (B, N, 3), got {tuple(means.shape)}")
    lead = means.shape[:2]
    for name, value, last in (
        ("quats", quats, (4,)),
        ("scales", scales, (3,)),
        ("opacities", opacities, ()),
        ("colors", colors, (3,)),
    ):
        if value.shape != (*lead, *last):
            raise ValueError(f"Gaussian {name} must be {(*lead, *last)} to go with the means, got {tuple(value.shape)}")
        if value.device != means.device:
            raise ValueError(f"Gaussian {name} are on {value.device}, the means on {means.device}; move them together")
