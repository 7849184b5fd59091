"""Cameras for distillation whose fields of view differ, and whose pictures grow along the run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from align3d.scenes.cameras import FARTHEST, MAX_SIZE, orbit
from align3d.types import Cameras

if TYPE_CHECKING:
    import torch

    from align3d.rng import Streams


@dataclass(frozen=True)
class LensRing:
    """Views at equal angles, with an elevation, a lens and a distance that they share: as for MVDream's fields.

    The distance follows the lens, so that the object fills the picture whatever the field of view. Defaults are those
    of threestudio's configuration for MVDream, whose lengths are twice ours.
    """

    views: int = 4  # cameras of a group, 1 or more; as many as the prior sees together, at most
    size: tuple[int, ...] = (64, 256)  # image side in pixels: at first, and from each of the updates in `grow` on
    grow: tuple[int, ...] = (5000,)  # updates, in order; one fewer than sizes
    elevation: tuple[float, float] = (0.0, 30.0)  # degrees above the horizon, from and to
    fovy: tuple[float, float] = (15.0, 60.0)  # degrees of the field of view, from and to
    reach: tuple[float, float] = (0.4, 0.5)  # half of what a picture shows at the object's centre, scene units
    sphere: float = 0.5  # probability that an elevation is even on the sphere; the others are even in degrees
    published: bool = False  # draw the former as the published code does: 0 to 19.5 degrees for 0 to 30

    def __post_init__(self) -> None:
        if not 1 <= self.views <= 64:
            raise ValueError(f"cameras.views must be 1 to 64, got {self.views}")
        if not self.size or not all(1 <= size <= MAX_SIZE for size in self.size):
            raise ValueError(f"cameras.size must be one or more of 1 to {MAX_SIZE} pixels, got {self.size}")
        ordered = all(a < b for a, b in pairwise((0, *self.grow)))
        if len(self.grow) != len(self.size) - 1 or not ordered:
            raise ValueError(
                f"cameras.grow must be updates in order, one fewer than cameras.size, got {self.grow} and {self.size}"
            )
        (low, high), (narrow, wide), (near, far) = self.elevation, self.fovy, self.reach
        if not -90 < low <= high < 90:
            raise ValueError(f"cameras.elevation must be two angles within -90 to 90 degrees, got {low} and {high}")
        if not 1 <= narrow <= wide <= 170 or not 0 < near <= far <= FARTHEST / 100:
            raise ValueError(
                f"cameras.fovy must be 1 to 170 degrees and reach two lengths above 0, got {self.fovy} and {self.reach}"
            )
        if not 0 <= self.sphere <= 1:
            raise ValueError(f"cameras.sphere must be a probability, 0 to 1, got {self.sphere}")

    def side(self, update: int) -> int:
        """The side of pictures in an update."""
        return self.size[sum(update >= start for start in self.grow)]

    def __call__(self, rng: Streams) -> Cameras:
        """Cameras (B, views), one row per stream; a row depends on its own stream, and on the update, only."""
        import torch

        u = rng.uniform("cameras", (5, 1))
        azimuth = (u[:, 0] + torch.arange(self.views)) * (360 / self.views) - 180
        fov = torch.deg2rad(self.fovy[0] + (self.fovy[1] - self.fovy[0]) * u[:, 1])
        reach = self.reach[0] + (self.reach[1] - self.reach[0]) * u[:, 2]
        tangent, side = (fov / 2).tan(), self.side(rng.step)
        elevation = torch.where(u[:, 3] < 1 - self.sphere, self.even(u[:, 4]), self.round(u[:, 4]))
        elevation, distance = (x.expand_as(azimuth) for x in (elevation, reach / tangent))
        cameras = orbit(azimuth, elevation, distance, 1.0, side, side)
        K = cameras.K.clone()
        K[..., 0, 0] = K[..., 1, 1] = 0.5 * side / tangent
        return replace(cameras, K=K)

    def even(self, u: torch.Tensor) -> torch.Tensor:
        """Elevations that are even in degrees."""
        low, high = self.elevation
        return low + (high - low) * u

    def round(self, u: torch.Tensor) -> torch.Tensor:
        """Elevations that are even on the sphere; as published, they are those of other limits."""
        import torch

        low, high = (math.sin(math.radians(angle)) for angle in self.elevation)
        if self.published:
            low, high = (angle / 90 for angle in self.elevation)
        return torch.rad2deg(torch.asin(low + (high - low) * u))
