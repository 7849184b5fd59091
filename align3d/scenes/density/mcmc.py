"""Gaussians as samples that wander: dead ones move to where the scene is, more are added, all are shaken a little.

Source: Kheradmand et al. 2024, "3D Gaussian Splatting as Markov Chain Monte Carlo", as gsplat's MCMCStrategy has it,
but for this: moments of the optimiser are zero wherever a Gaussian becomes another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from align3d.scenes.density.base import Refining, between

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

    from align3d.rng import Streams
    from align3d.scenes.density.rows import Rows

SHARPNESS = 100.0  # of the step in opacity below which Gaussians are shaken; published


@dataclass(frozen=True)
class MCMC(Refining):
    """Faint Gaussians move to opaque ones, some are added, places are shaken (3DGS as Markov chain Monte Carlo)."""

    faint: float = 0.01  # opacity up to which a Gaussian is dead, and moves to a live one
    more: float = 1.05  # times as many Gaussians after each change, up to `most`
    noise: float = 5e4  # of the places in each update, times their learning rate and the covariance; 0 = none
    opacity: float = 0.0  # weight of the mean opacity in the loss, so that Gaussians die that nothing needs
    scale: float = 0.0  # weight of the mean scale

    def __post_init__(self) -> None:
        super().__post_init__()
        between(0.0, 0.5, faint=self.faint)
        between(1.0, 10.0, more=self.more)
        between(0.0, 1e9, noise=self.noise, opacity=self.opacity, scale=self.scale)

    def penalties(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """See Density."""
        found = {}
        if self.opacity:
            found["opacity"] = self.opacity * values["logit_opacities"].sigmoid().mean()
        if self.scale:
            found["scale"] = self.scale * values["log_scales"].exp().mean()
        return found

    def refine(self, rows: Rows, done: int, rng: Streams, rate: float) -> Rows:
        """See Density."""
        if self.due(done):
            rows = self.moved(rows, rng.common("relocate"))
            rows = self.added(rows, rng.common("add"))
        return self.shaken(rows, rng.common("shake"), rate) if self.noise else rows

    def moved(self, rows: Rows, generator: torch.Generator) -> Rows:
        """With dead Gaussians in the places of live ones, drawn by their opacity, which share their light."""
        opacities = rows.opacities
        dead = (opacities <= self.faint).nonzero()[:, 0]
        if not len(dead) or len(dead) == len(rows):
            return rows
        host = drawn(opacities.masked_fill(opacities <= self.faint, 0), len(dead), generator)
        rows = divided(rows, host)
        return rows.written(dead, {name: value[host] for name, value in rows.values.items()}, new=True)

    def added(self, rows: Rows, generator: torch.Generator) -> Rows:
        """With new Gaussians in the places of others, drawn by their opacity, which share their light."""
        num = min(self.most, int(self.more * len(rows))) - len(rows)
        if num <= 0:
            return rows
        host = drawn(rows.opacities, num, generator)
        rows = divided(rows, host)
        return rows.with_new({name: value[host] for name, value in rows.values.items()})

    def shaken(self, rows: Rows, generator: torch.Generator, rate: float) -> Rows:
        """With noise on the places, larger along a Gaussian's larger axes, and next to none where it is opaque."""
        import torch

        from align3d.scenes.raster.projection import rotation

        means = rows.values["means"]
        noise = torch.randn(means.shape, generator=generator).to(means)
        gate = torch.sigmoid(-SHARPNESS * (rows.opacities - self.faint))
        R = rotation(rows.values["quats"], normalize=True)
        along = torch.einsum("nji,nj->ni", R, noise) * rows.scales.square()
        step = torch.einsum("nij,nj->ni", R, along) * (rate * self.noise * gate)[:, None]
        return replace(rows, values=rows.values | {"means": means + step})


def drawn(weights: Float[Tensor, "N"], num: int, generator: torch.Generator) -> Tensor:
    """Rows, (num,), drawn with replacement."""
    import torch

    return torch.multinomial(weights.double().cpu(), num, replacement=True, generator=generator).to(weights.device)


def divided(rows: Rows, host: Tensor) -> Rows:
    """With the light of each host shared out between it and those that come to it; it is another Gaussian then."""
    import torch

    from align3d.scenes.density.rows import shared

    counts = torch.bincount(host, minlength=len(rows))
    place = counts.nonzero()[:, 0]
    opacities, scales = shared(rows.opacities[place], rows.scales[place], counts[place] + 1)
    return rows.written(place, {"logit_opacities": opacities.logit(), "log_scales": scales.log()}, new=True)
