"""Cameras for distillation: groups of views all around an object, as a multi-view prior takes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align3d.scenes.cameras import FARTHEST, FOCAL, MAX_SIZE, RADIUS, orbit
from align3d.types import Cameras

if TYPE_CHECKING:
    from align3d.rng import Streams

RINGS = {
    "ring": "align3d.scenes.rings:Ring",
    "lenses": "align3d.scenes.lens_rings:LensRing",
}


@dataclass(frozen=True)
class Ring:
    """Views at equal angles around the object, from a random first one and at a random elevation that they share."""

    views: int = 4  # cameras of a group, 1 or more; as many as the prior sees together, at most
    size: int = 32  # image side in pixels
    elevation: tuple[float, float] = (0.0, 30.0)  # degrees above the horizon, from and to
    turn: float = 360.0  # degrees; the first azimuth is up to half of that from the front
    radius: tuple[float, float] = (RADIUS, RADIUS)  # distance from the object's centre in scene units, from and to
    focal: float = FOCAL  # focal length in image widths; larger zooms in

    def __post_init__(self) -> None:
        low, high = self.elevation
        if not 1 <= self.views <= 64:
            raise ValueError(f"cameras.views must be 1 to 64, got {self.views}")
        if not 1 <= self.size <= MAX_SIZE:
            raise ValueError(f"cameras.size must be 1 to {MAX_SIZE} pixels, got {self.size}")
        if not -90 < low <= high < 90:
            raise ValueError(f"cameras.elevation must be two angles within -90 to 90 degrees, got {low} and {high}")
        if not 0 <= self.turn <= 360:
            raise ValueError(f"cameras.turn must be 0 to 360 degrees, got {self.turn}")
        if not 0 < self.radius[0] <= self.radius[1] <= FARTHEST or not 0 < self.focal <= FARTHEST:
            raise ValueError(
                f"cameras.radius must be two distances and focal a length, above 0 and at most {FARTHEST}, got "
                f"{self.radius} and {self.focal}"
            )
        if not math.isfinite(sum(self.elevation) + sum(self.radius)):
            raise ValueError(f"cameras: elevation and radius must be finite, got {self.elevation} and {self.radius}")

    def __call__(self, rng: Streams) -> Cameras:
        """Cameras (B, views), one row per stream; a row depends on its own stream only."""
        import torch

        u = rng.uniform("cameras", (3,))
        azimuth = self.turn * (u[:, :1] - 0.5) + torch.arange(self.views) * (360 / self.views)
        (low, high), (near, far) = self.elevation, self.radius
        elevation = (low + (high - low) * u[:, 1:2]).expand_as(azimuth)
        radius = (near + (far - near) * u[:, 2:]).expand_as(azimuth)
        return orbit(azimuth, elevation, radius, self.focal, self.size, self.size)
