"""The C++ rasteriser for the CPU: buffers, the call through ctypes, and its place in autograd.

Same bits for any number of threads. Everything is computed in float32. See csrc/ for the code.
"""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Any

import torch

from align3d.scenes.cameras import to_device
from align3d.scenes.raster import compile as compiling
from align3d.types import Cameras, Views

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from align3d.scenes.raster.config import RasterConfig

OUTPUTS = {"rgb": 3, "alpha": 1, "depth": 1, "median_depth": 1, "normal": 3}  # channels
INPUTS = ("means", "quats", "scales", "opacities", "colors")
_INT, _FLOAT, _POINTER = ctypes.c_int32, ctypes.c_float, ctypes.c_void_p


class Job(ctypes.Structure):
    """The twin of `struct Job` in csrc/job.h."""

    _fields_ = (
        *((name, _INT) for name in ("B", "V", "N", "H", "W", "threads", "geometry", "normalize", "antialias")),
        *((name, _FLOAT) for name in ("eps2d", "near", "alpha_min", "alpha_max", "t_min")),
        ("background", _FLOAT * 3),
        *((name, _POINTER) for name in (*INPUTS, "c2w", "K", "shift")),
        *((name, _POINTER) for name in ("records", "z", "rects", "offsets", "base", "ids", "starts")),
        *((name, _POINTER) for name in ("state", "median_id")),
        *((name, _POINTER) for name in OUTPUTS),
        *((f"g_{name}", _POINTER) for name in OUTPUTS),
        ("tile_grads", _POINTER),
        *((f"g_{name}", _POINTER) for name in (*INPUTS, "shift")),
    )

    def point(self, **tensors: Tensor | None) -> None:
        """Point fields at tensors, which the caller keeps alive."""
        for name, tensor in tensors.items():
            setattr(self, name, None if tensor is None else tensor.data_ptr())


@functools.cache
def library(isa: str | None = None) -> ctypes.CDLL:
    """The loaded library, with `tile` (width and height in pixels).

    Raises:
        RuntimeError: If it cannot be compiled.
    """
    lib = compiling.load(isa)
    layout = (_INT * 4)()
    lib.align3d_layout(layout)
    size, lib.lanes, *lib.tile = layout
    assert size == ctypes.sizeof(Job), "struct Job and class Job differ"
    lib.align3d_project.restype = ctypes.c_int64
    lib.align3d_render.restype = lib.align3d_backward.restype = None
    return lib


@functools.cache
def problem() -> str | None:
    """Why native code cannot be had on this machine, or None. Compiles it if need be."""
    try:
        library()
    except (RuntimeError, OSError) as error:
        return str(error)
    return None


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
    """See `align3d.scenes.raster.rasterize`. Gradient: to the five Gaussian tensors and the shift.

    Raises:
        ValueError: If native code cannot be had, for tensors off the CPU, and for cameras that want a gradient.
    """
    if means.device.type != "cpu":
        raise ValueError(f"raster backend 'native' needs CPU tensors, got {means.device}; use 'auto'")
    if problem() is not None:
        raise ValueError(f"raster backend 'native' cannot be had: {problem()}; or use backend='torch'")
    if torch.is_grad_enabled() and (cameras.c2w.requires_grad or cameras.K.requires_grad):
        raise ValueError("raster backend 'native' gives cameras no gradient; use backend='torch' or detach them")
    inputs = [x.float().contiguous() for x in (means, quats, scales, opacities, colors)]
    seen = to_device(cameras, inputs[0])
    poses = [x.detach().contiguous() for x in (seen.c2w, seen.K)]
    moved = None if shift is None else shift.float().contiguous()
    images = _Rasterize.apply(*inputs, moved, *poses, seen.height, seen.width, want, background, config)
    return Views(seen, **dict(zip(want, images, strict=True)))


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        *inputs, shift, c2w, K, height, width, want, background, config = args
        lib = library()
        B, V, N = *c2w.shape[:2], inputs[0].shape[1]
        geometry = any(name not in ("rgb", "alpha") for name in want)
        job = Job(
            *(B, V, N, height, width, torch.get_num_threads(), geometry, config.normalize_quats, config.antialias),
            *(config.eps2d, config.near, config.alpha_min, config.alpha_max, config.t_min, tuple(background)),
        )
        tiles = -(-width // lib.tile[0]) * -(-height // lib.tile[1])
        job.point(**dict(zip(INPUTS, inputs, strict=True)), c2w=c2w, K=K, shift=shift)
        kept = {
            "records": torch.empty(B * V * N * (16 if geometry else 12)),
            "rects": torch.empty(B * V * N * 4, dtype=torch.int16),
            "offsets": torch.empty(B * V * N, dtype=torch.int32),
            "base": torch.empty(B * V + 1, dtype=torch.int64),
            "starts": torch.empty(B * V * (tiles + 1), dtype=torch.int32),
        }
        if any(ctx.needs_input_grad):
            pixels = B * V * tiles * lib.tile[0] * lib.tile[1]
            kept["state"] = torch.empty(pixels * (8 if geometry else 4))
            if geometry:
                kept["median_id"] = torch.empty(pixels, dtype=torch.int32)
        z = torch.empty(B * V * N)
        job.point(**kept, z=z)
        pairs = lib.align3d_project(ctypes.byref(job))
        if pairs < 0:
            raise ValueError("a view has more than 2^31 (tile, Gaussian) pairs; render fewer or smaller Gaussians")
        kept["ids"] = torch.empty(pairs, dtype=torch.int32)
        images = {name: torch.empty(B, V, OUTPUTS[name], height, width) for name in want}
        job.point(ids=kept["ids"], **images)
        lib.align3d_render(ctypes.byref(job))
        if any(ctx.needs_input_grad):
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*inputs, c2w, K, *kept.values())  # nothing depends on the shift but the records
            ctx.job, ctx.kept, ctx.want, ctx.pairs = job, tuple(kept), want, pairs
        return tuple(images[name] for name in want)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs, c2w, K = ctx.saved_tensors[:5], *ctx.saved_tensors[5:7]
        job = Job.from_buffer_copy(ctx.job)
        job.threads = torch.get_num_threads()
        of_shift = torch.empty(job.B, job.V, job.N, 2) if ctx.needs_input_grad[5] else None
        job.point(**dict(zip(INPUTS, inputs, strict=True)), c2w=c2w, K=K, shift=None, g_shift=of_shift)
        job.point(**dict(zip(ctx.kept, ctx.saved_tensors[7:], strict=True)))
        of_images = {
            f"g_{name}": None if g is None else g.contiguous() for name, g in zip(ctx.want, grads, strict=True)
        }
        of_inputs = [torch.empty_like(x) for x in inputs]
        tile_grads = torch.empty(ctx.pairs * (16 if job.geometry else 12))
        job.point(**of_images, tile_grads=tile_grads, **{f"g_{n}": g for n, g in zip(INPUTS, of_inputs, strict=True)})
        library().align3d_backward(ctypes.byref(job))
        return (*of_inputs, of_shift, *(None,) * 7)
