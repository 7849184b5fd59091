"""One scene of 3D Gaussians whose parameters are optimised without bounds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from align3d.scenes.gaussians import Gaussians

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from jaxtyping import Float
    from torch import Tensor

    from align3d.rng import Streams
    from align3d.types import Cameras

LEAST, MOST = 1e-4, 1 - 1e-4  # opacities and colours whose logit is finite
SMALLEST = 1e-4  # scale that a Gaussian from a file is taken to have at least, scene units


class Splats(nn.Module):
    """N Gaussians as logarithms of scales, raw quaternions, and logits of opacities and colours."""

    def __init__(self, start: Gaussians) -> None:
        """From the first of some scenes; `start` may come from a file, a generator, or `ball`."""
        super().__init__()
        self.raster, self.backend = start.raster, start.backend
        means, quats, scales, opacities, colors = (x[0].detach().clone().float() for x in start.tensors)
        self.means = nn.Parameter(means)
        self.quats = nn.Parameter(quats / quats.norm(dim=-1, keepdim=True).clamp_min(1e-12))
        self.log_scales = nn.Parameter(scales.clamp_min(SMALLEST).log())
        self.logit_opacities = nn.Parameter(opacities.clamp(LEAST, MOST).logit())
        self.logit_colors = nn.Parameter(colors.clamp(LEAST, MOST).logit())

    def __len__(self) -> int:
        """The number of Gaussians, N."""
        return len(self.means)

    def forward(self, rows: int = 1) -> Gaussians:
        """The scene, `rows` times over. Gradient: to the parameters, summed over the rows."""
        quats = self.quats / self.quats.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        values = (
            *(self.means, quats, self.log_scales.exp()),
            *(self.logit_opacities.sigmoid(), self.logit_colors.sigmoid()),
        )
        tensors = (x[None].expand(rows, *x.shape) for x in values)
        return Gaussians(*tensors, raster=self.raster, backend=self.backend)

    def rates(self) -> dict[str, float]:
        """Learning rates, those that DreamGaussian ends with or keeps."""
        return {"means": 1e-3, "quats": 5e-3, "log_scales": 5e-3, "logit_opacities": 5e-2, "logit_colors": 1e-2}

    def shown(
        self, cameras: Cameras, rng: Streams, background: tuple[float, float, float]
    ) -> tuple[Float[Tensor, "B V 3 H W"], dict[str, Tensor]]:
        """What the cameras see; no randomness, no penalties. Gradient: to the parameters."""
        return self(len(rng)).render(cameras, want=("rgb",), background=background).rgb, {}

    def scene(self) -> Gaussians:
        """The Gaussians as they are now, B = 1."""
        return self(1)

    def files(self) -> dict[str, Callable[[Path], None]]:
        """scene.ply."""
        from align3d.scenes.ply import write_ply

        return {"scene.ply": lambda path: write_ply(path, self.scene())}


def ball(num: int, radius: float = 0.35, opacity: float = 0.1, generator: torch.Generator | None = None) -> Gaussians:
    """A cloud of grey Gaussians in a ball around the origin, as large as their distances are.

    Args:
        num: How many.
        radius: Of the ball, scene units; objects fill [-0.5, 0.5]^3.
        opacity: Of each.
        generator: Of the places and colours.

    Raises:
        ValueError: If there are none, or radius or opacity cannot be.
    """
    if num < 1 or not 0 < radius < math.inf or not 0 < opacity < 1:
        raise ValueError(
            f"a ball needs Gaussians, a radius above 0, an opacity of 0 to 1; got {num}, {radius}, {opacity}"
        )
    direction = torch.randn(num, 3, generator=generator)
    far = torch.rand(num, 1, generator=generator) ** (1 / 3)
    means: Float[Tensor, "N 3"] = radius * far * direction / direction.norm(dim=1, keepdim=True)
    size = radius * (4 / 3 * math.pi / num) ** (1 / 3) / 2
    colors = 0.5 + 0.1 * (torch.rand(num, 3, generator=generator) - 0.5)
    quats = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(num, 4)
    scales, opacities = torch.full((num, 3), size), torch.full((num,), opacity)
    return Gaussians(*(x[None].contiguous() for x in (means, quats, scales, opacities, colors)))
