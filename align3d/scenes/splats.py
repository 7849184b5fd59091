"""One scene of 3D Gaussians whose parameters are optimised without bounds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from align3d.scenes.density.base import Density
from align3d.scenes.density.rows import NEW, Rows
from align3d.scenes.gaussians import Gaussians
from align3d.weights import assign

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from jaxtyping import Float, Int
    from torch import Tensor

    from align3d.rng import Streams
    from align3d.types import Cameras

NAMES = ("means", "quats", "log_scales", "logit_opacities", "logit_colors")
LEAST, MOST = 1e-4, 1 - 1e-4  # opacities and colours whose logit is finite
SMALLEST = 1e-4  # scale that a Gaussian from a file is taken to have at least, scene units


class Splats(nn.Module):
    """N Gaussians as logarithms of scales, raw quaternions, and logits of opacities and colours.

    `pulled` and `seen`, where there are such, sum up how hard the views have pulled at each Gaussian since the last
    change, and how many have. They are parameters so that checkpoints keep them with the rest; they get no gradient.
    """

    def __init__(self, start: Gaussians, density: Density | None = None) -> None:
        """Gaussians that train.

        Args:
            start: The first of these scenes; may come from a file, a generator, or `ball`.
            density: How their number changes; None: not at all.

        Raises:
            ValueError: If there are more than `density` allows.
        """
        super().__init__()
        self.density = (density or Density()).sized(start.means.shape[1])
        self.raster, self.backend = start.raster, start.backend
        means, quats, scales, opacities, colors = (x[0].detach().clone().float() for x in start.tensors)
        self.means = nn.Parameter(means)
        self.quats = nn.Parameter(quats / quats.norm(dim=-1, keepdim=True).clamp_min(1e-12))
        self.log_scales = nn.Parameter(scales.clamp_min(SMALLEST).log())
        self.logit_opacities = nn.Parameter(opacities.clamp(LEAST, MOST).logit())
        self.logit_colors = nn.Parameter(colors.clamp(LEAST, MOST).logit())
        if self.density.watches:
            self.pulled, self.seen = (nn.Parameter(torch.zeros(len(means))) for _ in range(2))
            self.fresh: Tensor | None = None  # (2, N), what the backward passes of this update add to them

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
        """What the cameras see, and what `density` asks for; no randomness. Gradient: to the parameters."""
        shift = self.watch(cameras) if self.density.watches and torch.is_grad_enabled() else None
        views = self(len(rng)).render(cameras, want=("rgb",), background=background, shift=shift)
        return views.rgb, self.density.penalties(self.values())

    def values(self) -> dict[str, Tensor]:
        """The parameters of the Gaussians by name, a row each."""
        return {name: getattr(self, name) for name in NAMES}

    @property
    def growing(self) -> dict[str, int]:
        """The parameters whose rows come and go, with the most rows that they may have."""
        return {name: self.density.most for name, _ in self.named_parameters()} if self.density.changes else {}

    def watch(self, cameras: Cameras) -> Float[Tensor, "B V N 2"]:
        """Zeros that Gaussians are moved by in each view, and whose gradient is summed up when it comes.

        As in 3D Gaussian Splatting, it is taken in halves of the picture's sides, so that its size does not matter.
        """
        shift = self.means.new_zeros(*cameras.c2w.shape[:2], len(self), 2).requires_grad_()
        half = shift.new_tensor([cameras.width / 2, cameras.height / 2])

        def tell(leaf: Tensor) -> None:
            pull = (leaf.grad * half).norm(dim=-1).flatten(0, 1)
            new = torch.stack([pull.sum(0), (pull > 0).sum(0)])
            self.fresh = new if self.fresh is None else self.fresh + new

        shift.register_post_accumulate_grad_hook(tell)
        return shift

    def tally(self, average: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Sum up how hard the views of an update have pulled.

        Args:
            average: A tensor's mean over all processes.

        Returns:
            Numbers to be logged.
        """
        if self.density.watches:
            new = self.means.new_zeros(2, len(self)) if self.fresh is None else self.fresh
            new, self.fresh = average(new), None
            with torch.no_grad():
                self.pulled += new[0]
                self.seen += new[1]
        return {"gaussians": float(len(self))} if self.density.changes else {}

    def refine(self, rng: Streams, ramp: float) -> dict[str, Int[Tensor, "_"]]:
        """Become more and fewer before an update, as `density` has it.

        Args:
            rng: Of the update that follows, shared by all processes.
            ramp: Its share of the learning rates.

        Returns:
            By parameter, which row each of its rows was before, negative for new ones; none where no row has moved.
        """
        if not self.density.changes:
            return {}
        with torch.no_grad():
            pull = self.pulled / self.seen.clamp_min(1e-12) if self.density.watches else None
            before = Rows.of(self.values(), pull)
            return self.take(before, self.density.refine(before, rng.step, rng, ramp * self.rates()["means"]))

    def take(self, before: Rows, after: Rows) -> dict[str, Int[Tensor, "_"]]:
        """Become what `density` has made; the sources of the rows, by parameter."""
        for name, value in after.values.items():
            if value is not before.values[name]:
                assign(getattr(self, name), value)
        moved = after.source is not before.source
        found = dict.fromkeys(NAMES, after.source) if moved else {}
        if moved and self.density.watches:
            for tally in (self.pulled, self.seen):
                assign(tally, torch.zeros_like(after.pull))
            found |= dict.fromkeys(("pulled", "seen"), after.source)
        return found | {name: torch.full_like(after.source, NEW) for name in after.forget}

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
