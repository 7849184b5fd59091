"""Marching along rays through a field: what they see, with the light that each sample takes.

    T_j = exp(-sum_{k<j} sigma_k delta_k),  w_j = T_j (1 - exp(-sigma_j delta_j)),  opacity = sum w,  rgb = sum w c

Two units of the field are one scene unit: its box [-1, 1]^3 is the [-0.5, 0.5]^3 that objects fill. Lengths along rays,
densities and the variance are in units of the field; depths in scene units, as everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch.nn import functional as F

from align3d.scenes.cameras import pixel_rays

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from align3d.types import Cameras

    Shade = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # of albedo, normals, points, the number of each's ray

SCALE = 2.0  # units of the field in a scene unit
DIAGONAL = 2 * math.sqrt(3.0)  # of the box
DARK = 1e-4  # samples that less light than this reaches are pruned
SEEN = 1e-6  # opacity from which a ray has a depth and a normal


@runtime_checkable
class AnyField(Protocol):
    """What can be marched through; fields.Field is one."""

    def density(self, x: Float[Tensor, "M 3"], twice: bool = False) -> tuple[Float[Tensor, "M"], Tensor]:
        """Density at points of [-1, 1]^3, and what `color` takes; `twice` if it is to be differentiated twice by x."""
        ...

    def color(self, code: Tensor) -> Float[Tensor, "M 3"]:
        """RGB in [0, 1] of what `density` gave."""
        ...


@dataclass(frozen=True)
class Rays:
    """R rays in units of the field."""

    origin: Float[Tensor, "R 3"]
    direction: Float[Tensor, "R 3"]  # unit
    depth: Float[Tensor, "R"]  # camera z in scene units, per unit of length along the ray

    @classmethod
    def of(cls, cameras: Cameras) -> Rays:
        """Those through the pixel centres, in the order B V H W."""
        origin, direction = pixel_rays(cameras)
        origin = origin.expand_as(direction).movedim(2, -1).reshape(-1, 3)
        direction = direction.movedim(2, -1).reshape(-1, 3)
        length = direction.norm(dim=1)
        return cls(SCALE * origin, direction / length[:, None], 1 / (SCALE * length))

    def __len__(self) -> int:
        return len(self.origin)

    def __getitem__(self, rows: slice) -> Rays:
        return Rays(self.origin[rows], self.direction[rows], self.depth[rows])


@dataclass(frozen=True)
class Samples:
    """M samples on R rays, in order."""

    rays: int  # R
    ray: Int[Tensor, "M"]  # of each
    t: Float[Tensor, "M"]  # length along the ray, of the middle
    width: float  # of a step

    def keep(self, which: Bool[Tensor, "M"]) -> Samples:
        """Some of them."""
        some = which.nonzero()[:, 0]
        return Samples(self.rays, self.ray[some], self.t[some], self.width)

    def points(self, rays: Rays) -> Float[Tensor, "M 3"]:
        """Where they are."""
        return rays.origin[self.ray] + self.t[:, None] * rays.direction[self.ray]

    def dense(self, values: Float[Tensor, "M *C"]) -> Float[Tensor, "R S *C"]:
        """Values by ray, those of its samples in order and then zeros; added up in a fixed order everywhere."""
        place, slots = self.place
        found = values.new_zeros(self.rays * slots, *values.shape[1:])
        return found.index_put((place,), values).unflatten(0, (self.rays, slots))

    def flat(self, dense: Tensor) -> Tensor:
        """The inverse of `dense`: (R, S) to (M,)."""
        return dense.flatten()[self.place[0]]

    @cached_property
    def place(self) -> tuple[Int[Tensor, "M"], int]:
        """Where each is in the flat form of (R, S), and S, the most samples on a ray, 1 or more."""
        counts = torch.bincount(self.ray, minlength=self.rays)
        slots = max(1, int(counts.amax()))
        rank = torch.arange(len(self.ray), device=self.ray.device) - (counts.cumsum(0) - counts)[self.ray]
        return self.ray * slots + rank, slots


@dataclass(frozen=True)
class Pixels:
    """What R rays see."""

    rgb: Float[Tensor, "R 3"]  # of the object, black behind
    alpha: Float[Tensor, "R"]
    length: Float[Tensor, "R"]  # expected, along the ray; 0 where nothing is
    median: Float[Tensor, "R"]  # where half of the light is gone; 0 where that is nowhere
    variance: Float[Tensor, "R"]  # of the length; 0 where opacity is at most 0.5
    normal: Float[Tensor, "R 3"] | None = None  # unit, facing the camera; 0 where nothing is
    away: Float[Tensor, "R"] | None = None  # sum of sg(w) relu(n . direction)^2


def along(
    rays: Rays, samples: int, jitter: Float[Tensor, "R"] | None = None, full: Bool[Tensor, "G G G"] | None = None
) -> Samples:
    """Samples at equal steps from where the rays enter the box.

    Args:
        rays: Which.
        samples: Steps across the box's diagonal.
        jitter: In [0, 1), where in a step each ray has its samples; None: in the middle.
        full: Cells of the box, x first, that are not empty; None: all.
    """
    width = DIAGONAL / samples
    near, far = crossed(rays, -1.0, 1.0)
    first = near if jitter is None else near + (jitter - 0.5) * width
    enter, leave = near, far
    if full is not None:
        enter, leave = crossed(rays, *bounds(full, near))
    skipped = ((enter - first) / width - 0.5).ceil().clamp_min(0)
    steps = max(1, 1 + math.ceil(float((leave - enter).amax()) / width))
    t = first[:, None] + (skipped[:, None] + torch.arange(steps, device=near.device) + 0.5) * width
    kept = (t < torch.minimum(far, leave)[:, None]) & (t > near[:, None])
    ray, step = kept.nonzero().unbind(1)
    found = Samples(len(t), ray, t[ray, step], width)
    return found if full is None else found.keep(inside(found.points(rays), full))


def crossed(rays: Rays, low: float | Tensor, high: float | Tensor) -> tuple[Float[Tensor, "R"], Float[Tensor, "R"]]:
    """Where rays enter and leave a box; they leave before they enter where they miss it."""
    away = torch.where(rays.direction.abs() < 1e-9, torch.full_like(rays.direction, 1e-9), rays.direction)
    ends = torch.stack([(low - rays.origin) / away, (high - rays.origin) / away])
    return ends.amin(0).amax(1).clamp_min(0), ends.amax(0).amin(1)


def bounds(full: Bool[Tensor, "G G G"], like: Tensor) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
    """The corners of the box around all full cells, a little wider; one that is empty if there are none."""
    size = len(full)
    sides = [full.any(dim=other).nonzero()[:, 0] for other in ((1, 2), (0, 2), (0, 1))]
    if not all(len(side) for side in sides):
        return like.new_ones(3), -like.new_ones(3)
    low, high = (torch.stack([end(side) for side in sides]).to(like) for end in (torch.amin, torch.amax))
    return low / size * 2 - 1 - SEEN, (high + 1) / size * 2 - 1 + SEEN


def inside(x: Float[Tensor, "M 3"], full: Bool[Tensor, "G G G"]) -> Bool[Tensor, "M"]:
    """Whether points are in full cells."""
    i, j, k = ((x + 1) / 2 * len(full)).long().clamp(0, len(full) - 1).unbind(1)
    return full[i, j, k]


def light(sigma: Float[Tensor, "M"], samples: Samples) -> tuple[Float[Tensor, "R S"], Float[Tensor, "R S"]]:
    """The optical depth of each sample, and that before it; by ray."""
    depth = samples.dense(sigma * samples.width)
    return depth, depth.cumsum(1) - depth


def visible(field: AnyField, rays: Rays, samples: Samples, prune: float) -> Samples:
    """Those that take `prune` or more of the light that reaches them, if that is not next to nothing."""
    with torch.no_grad():
        depth, before = light(field.density(samples.points(rays))[0], samples)
        return samples.keep(samples.flat((-torch.expm1(-depth) >= prune) & ((-before).exp() >= DARK)))


def trace(
    field: AnyField, rays: Rays, samples: Samples, prune: float = 0.0, normals: bool = False, shade: Shade | None = None
) -> Pixels:
    """What rays see.

    Args:
        field: What they go through.
        rays: Which.
        samples: On them.
        prune: As of `visible`; 0 leaves nothing out.
        normals: Whether normals are wanted. With a gradient to the field, they are differentiated twice.
        shade: From albedo and normals at samples to their colours.

    Gradient: to the field.
    """
    if prune and len(samples.t):
        samples = visible(field, rays, samples, prune)
    if not len(samples.t):  # one that counts for nothing, so that there is a gradient, which is 0
        return nothing(field, rays)
    x = samples.points(rays)
    normals = normals or shade is not None
    sigma, code, n = with_normals(field, x) if normals else (*field.density(x), None)
    depth, before = light(sigma, samples)
    w = (-before).exp() * -torch.expm1(-depth)
    flat = samples.flat(w)
    color = field.color(code)
    if shade is not None:
        color = shade(color, n, x, samples.ray)
    rgb = samples.dense(flat[:, None] * color).sum(1)
    alpha, t = w.sum(1), samples.dense(samples.t)
    seen = alpha > SEEN
    mean = torch.where(seen, (w * t).sum(1) / alpha.clamp_min(SEEN), 0)
    share = w / alpha.clamp_min(1e-5)[:, None]
    variance = torch.where(alpha > 0.5, (share * (t - mean[:, None]).square()).sum(1), 0)
    found = Pixels(rgb, alpha, mean, median(sigma, samples, before + depth), variance)
    if n is None:
        return found
    facing = (n * rays.direction[samples.ray]).sum(1)
    away = samples.dense(flat.detach() * facing.clamp_min(0).square()).sum(1)
    total = F.normalize(samples.dense(flat[:, None] * n).sum(1), dim=1, eps=SEEN)
    turn = torch.where((total * rays.direction).sum(1) > 0, -1.0, 1.0)
    normal = torch.where(seen, turn, 0.0)[:, None] * total
    return replace(found, normal=normal, away=away)


def with_normals(field: AnyField, x: Float[Tensor, "M 3"]) -> tuple[Float[Tensor, "M"], Tensor, Float[Tensor, "M 3"]]:
    """Density, code and the normals -grad sigma / |grad sigma|; in a graph if grad mode is on."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        sigma, code = field.density(x, twice=graph)
        (slope,) = torch.autograd.grad(sigma.sum(), x, create_graph=graph)
    n = -F.normalize(slope, dim=1, eps=1e-8)
    return (sigma, code, n) if graph else (sigma.detach(), code.detach(), n)


def median(sigma: Float[Tensor, "M"], samples: Samples, end: Float[Tensor, "R S"]) -> Float[Tensor, "R"]:
    """The length at which half of the light is gone; 0 where that is nowhere. Gradient: to sigma."""
    half = math.log(2.0)
    past = end >= half
    first = past.float().argmax(1, keepdim=True)
    density = samples.dense(sigma).gather(1, first)[:, 0]
    over = (end.gather(1, first)[:, 0] - half) / density.clamp_min(1e-9)
    t = samples.dense(samples.t).gather(1, first)[:, 0] + samples.width / 2 - over
    return torch.where(past.any(1), t, 0)


def nothing(field: AnyField, rays: Rays) -> Pixels:
    """What rays see that meet no sample, with a gradient of 0."""
    sigma, code = field.density(torch.zeros_like(rays.origin[:1]))
    zero = 0 * sigma + 0 * field.color(code).sum(1)
    zeros = zero.expand(len(rays))
    none = zeros[:, None].expand(-1, 3)
    return Pixels(none, zeros, zeros, zeros, zeros, none, zeros)


def joined(parts: list[Pixels]) -> Pixels:
    """What was traced in parts, as one."""

    def cat(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if any(value is None for value in values) else torch.cat(values)

    return Pixels(*(cat(name) for name in ("rgb", "alpha", "length", "median", "variance", "normal", "away")))
