"""A point light on the object while it is optimised; one that has no colours shows its shape alone.

Source: DreamFusion (Poole et al. 2022), with threestudio's material and "soft shading": d ~ U(0, 1) in each update,
shade = relu(n . l) d + (1 - d), l the direction to the light.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from align3d.scenes.nerf.volume import SCALE

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from align3d.rng import Streams
    from align3d.scenes.nerf.options import Shading
    from align3d.types import Cameras

NEAR, FAR = 0.8, 1.5  # distances of the light from the origin, units of the field


@dataclass(frozen=True)
class Light:
    """One light for each view."""

    place: Float[Tensor, "W 3"]  # units of the field
    rays: int  # of a view; those of a view come together
    diffuse: float  # share of the light that comes from there, 0 to 1; the rest comes from everywhere
    textureless: bool

    def __call__(
        self, albedo: Float[Tensor, "M 3"], n: Float[Tensor, "M 3"], x: Float[Tensor, "M 3"], ray: Int[Tensor, "M"]
    ) -> Float[Tensor, "M 3"]:
        """Colours at samples, as `volume.trace` asks for them."""
        to = torch.nn.functional.normalize(self.place[ray // self.rays] - x, dim=1)
        shade = (n * to).sum(1, keepdim=True).clamp_min(0) * self.diffuse + (1 - self.diffuse)
        return shade.expand_as(albedo) if self.textureless else albedo * shade


def lit(options: Shading, cameras: Cameras, rng: Streams) -> Light | None:
    """The light of an update; None where there are colours alone. One choice for all rows, a light for each view."""
    if options.start < 0 or rng.step < options.start:
        return None
    diffuse, plain, bare = torch.rand(3, generator=rng.common("shading")).tolist()
    if plain < options.albedo:
        return None
    V = cameras.c2w.shape[1]
    toward = SCALE * cameras.c2w[..., :3, 3] + rng.normal("light", (V, 3), like=cameras.c2w)
    far = NEAR + (FAR - NEAR) * rng.uniform("distance of the light", (1, 1), like=cameras.c2w)
    place = far * torch.nn.functional.normalize(toward, dim=-1)
    return Light(place.flatten(0, 1), cameras.height * cameras.width, diffuse, bare < options.textureless)
