"""The pure-torch rasteriser: works on every device and in every precision; the oracle of the fast backends.

Gaussians are sorted by depth and listed per 8 x 8 tile; the tiles are then blended densely, (tiles, list, pixels), in
chunks whose graphs are rebuilt in the backward pass so that memory stays bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

from align3d.scenes.cameras import to_device
from align3d.scenes.raster.projection import Projection, project
from align3d.types import Cameras, Views

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from align3d.scenes.raster.config import RasterConfig

TILE = 8  # pixels
BUDGET = 4_000_000  # (Gaussian, pixel) pairs blended at once; a pair holds about 60 bytes
NORM_MIN = 1e-6  # shorter sums of normals have no direction


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
    """See `align3d.scenes.raster.rasterize`. Gradient: to all tensors, cameras included."""
    seen = to_device(cameras, means)
    projection = project(means, quats, scales, opacities, seen, config)
    if shift is not None:
        projection = projection._replace(mean2d=projection.mean2d + shift)
    table = torch.cat(
        [
            *(projection.mean2d, projection.conic, projection.opacity[..., None]),
            *(colors[:, None].expand(-1, seen.c2w.shape[1], -1, -1), projection.planes.normal),
            *(projection.planes.distance[..., None], projection.planes.slope),
        ],
        dim=-1,
    ).flatten(0, 2)
    lists = tile_lists(projection, seen.height, seen.width)
    sums = _blend_all(table, lists, seen, config)
    return finish(sums, seen, want, background)


class TileLists(NamedTuple):
    """For each tile of each view, the rows of the table that touch it, front to back."""

    rows: Int[Tensor, "I"]  # into (B V N)
    start: Int[Tensor, "T"]  # T = B V (tiles down) (tiles across)
    count: Int[Tensor, "T"]


def tile_lists(projection: Projection, height: int, width: int) -> TileLists:
    """Sorts by depth (ties by index) and lists what touches each tile."""
    across, down = -(-width // TILE), -(-height // TILE)
    with torch.no_grad():  # indices only
        size = projection.z.new_tensor([width, height])
        low = torch.ceil(projection.mean2d - projection.half - 0.5).clamp(min=0)
        high = torch.minimum(torch.floor(projection.mean2d + projection.half - 0.5), size - 1)
        drawn = (projection.opacity > 0) & (low <= high).all(-1)
        rows = drawn.flatten().nonzero()[:, 0]
        rows = rows[torch.argsort(projection.z.flatten()[rows], stable=True)]
        low, high = ((x.flatten(0, 2)[rows] // TILE).long() for x in (low, high))
        wide = high[:, 0] - low[:, 0] + 1
        count = wide * (high[:, 1] - low[:, 1] + 1)
        which = torch.repeat_interleave(count)
        local = torch.arange(len(which), device=rows.device) - (count.cumsum(0) - count)[which]
        ty, tx = low[which, 1] + local // wide[which], low[which, 0] + local % wide[which]
        view = rows[which] // max(projection.z.shape[-1], 1)
        tile, order = torch.sort((view * down + ty) * across + tx, stable=True)
        counts = torch.bincount(tile, minlength=projection.z.shape[:2].numel() * across * down)
        return TileLists(rows[which][order], counts.cumsum(0) - counts, counts)


def _blend_all(table: Tensor, lists: TileLists, cameras: Cameras, config: RasterConfig) -> Float[Tensor, "B V H W 9"]:
    """Blends all tiles, longest lists first, as many at once as the budget allows."""
    across, down = -(-cameras.width // TILE), -(-cameras.height // TILE)
    order = torch.argsort(lists.count, descending=True)
    order = order[lists.count[order] > 0]
    step = torch.arange(TILE, device=table.device, dtype=table.dtype) + 0.5
    pixel = torch.stack([step.repeat(TILE), step.repeat_interleave(TILE)], dim=-1)
    chunks, i = [], 0
    while i < len(order):
        longest = int(lists.count[order[i]])
        tiles = order[i : i + max(1, BUDGET // (longest * TILE * TILE))]
        i += len(tiles)
        slot = torch.arange(longest, device=table.device)
        there = slot < lists.count[tiles, None]
        rows = lists.rows[(lists.start[tiles, None] + slot).clamp(max=len(lists.rows) - 1)]
        corner = torch.stack([tiles % across, tiles // across % down], dim=-1) * TILE
        args = (table, rows, there, pixel + corner[:, None], config)
        chunks.append(checkpoint(_blend, *args, use_reentrant=False) if len(tiles) < len(order) else _blend(*args))
    B, V = cameras.c2w.shape[:2]
    empty = table.new_tensor([0.0] * 7 + [1.0, 0.0]).expand(B * V * down * across, TILE * TILE, 9)
    image = empty.index_copy(0, order, torch.cat(chunks)) if chunks else empty + table[:0].sum()
    image = image.reshape(B, V, down, across, TILE, TILE, 9).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    return image[:, :, : cameras.height, : cameras.width]


def _blend(
    table: Float[Tensor, "R 15"],
    rows: Int[Tensor, "T L"],
    there: Tensor,
    pixel: Float[Tensor, "T P 2"],
    config: RasterConfig,
) -> Float[Tensor, "T P 9"]:
    """Front-to-back compositing: weighted rgb, normal and distance, the light left over, and the median distance."""
    g = table[rows]
    dx, dy = g[:, :, 0:1] - pixel[:, None, :, 0], g[:, :, 1:2] - pixel[:, None, :, 1]
    power = 0.5 * (g[:, :, 2:3] * dx * dx + g[:, :, 4:5] * dy * dy) + g[:, :, 3:4] * dx * dy
    alpha = (g[:, :, 5:6] * torch.exp(-power)).clamp(max=config.alpha_max)
    alpha = torch.where((power >= 0) & (alpha >= config.alpha_min) & there[:, :, None], alpha, 0.0)
    with torch.no_grad():  # a pixel stops before the splat that would leave too little light
        alive = torch.cumprod(1 - alpha, dim=1) > config.t_min
    alpha = torch.where(alive, alpha, 0.0)
    passes = torch.log1p(-alpha)
    total = torch.cumsum(passes, dim=1)
    before = torch.exp(total - passes)
    weight = alpha * before
    distance = g[:, :, 12:13] + g[:, :, 13:14] * dx + g[:, :, 14:15] * dy
    features = torch.einsum("tlp,tlc->tpc", weight, g[:, :, 6:12])
    with torch.no_grad():
        front = (before > 0.5) & (alpha > 0)
        slot = torch.arange(front.shape[1], device=table.device)[None, :, None]
        last = torch.where(front, slot, -1).amax(1)
    median = torch.gather(distance, 1, last.clamp(min=0)[:, None])[:, 0]
    median = torch.where(last >= 0, median, 0.0)
    rest = [(weight * distance).sum(1), torch.exp(total[:, -1]), median]
    return torch.cat([features, torch.stack(rest, dim=-1)], dim=-1)


def finish(
    sums: Float[Tensor, "B V H W 9"],
    cameras: Cameras,
    want: tuple[str, ...],
    background: tuple[float, ...],
) -> Views:
    """From sums along the rays (rgb, normal, distance, light left over, median distance) to the channels of Views."""
    rgb, normal, distance, left, median = sums.movedim(-1, 2).split([3, 3, 1, 1, 1], dim=2)
    K = cameras.K[..., None, None]
    x = torch.arange(cameras.width, device=K.device) + 0.5
    y = torch.arange(cameras.height, device=K.device)[:, None] + 0.5
    u, v = (x - K[:, :, 0, 2]) / K[:, :, 0, 0], (y - K[:, :, 1, 2]) / K[:, :, 1, 1]
    ray = torch.sqrt(u * u + v * v + 1)[:, :, None]
    alpha = 1 - left
    out = {
        "rgb": lambda: rgb + left * rgb.new_tensor(background)[:, None, None],
        "alpha": lambda: alpha,
        "depth": lambda: torch.where(alpha > 0, distance / torch.where(alpha > 0, alpha, 1.0) / ray, 0.0),
        "median_depth": lambda: median / ray,
        "normal": lambda: normal / _norm(normal).clamp(min=NORM_MIN),
    }
    return Views(cameras, **{name: out[name]() for name in want})


def _norm(x: Tensor) -> Tensor:
    """The norm along the channels, with gradient 0 where it is 0."""
    square = x.square().sum(2, keepdim=True)
    return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)
