"""Gaussians as samples that wander: dead ones move to where the scene is, more are added, all are shaken a little.

Source: Kheradmand et al. 2024, "3D Gaussian Splatting as Markov Chain Monte Carlo", as gsplat's MCMCStrategy has it,
but for this: moments of the optimiser are zero wherever a Gaussian becomes another, and no Gaussian is divided into
dead ones, which gsplat keeps at the limit instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from align3d.scenes.density.base import Refining, between

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int
    from torch import Tensor

    from align3d.rng import Streams
    from align3d.scenes.density.rows import Rows

MOST_SHARES = 51  # Gaussians that one is divided into, at most, as in gsplat
SHARPNESS = 100.0  # of the step in opacity below which Gaussians are shaken; published


@dataclass(frozen=True)
class MCMC(Refining):
    """Faint Gaussians move to opaque ones, some are added, places are shaken (3DGS as Markov chain Monte Carlo)."""

    faint: float = 0.01  # opacity up to which a Gaussian is dead, and moves to a live one
    more: float = 1.05  # times as many Gaussians after each change, up to `most`
    noise: float = 5e4  # of the places before each update, times their learning rate and the covariance; 0 = none
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
        guest, host = self.hosts(opacities.masked_fill(opacities <= self.faint, 0), len(dead), generator)
        rows = divided(rows, host)
        return rows.written(dead[guest], {name: value[host] for name, value in rows.values.items()}, new=True)

    def added(self, rows: Rows, generator: torch.Generator) -> Rows:
        """With new Gaussians in the places of others, drawn by their opacity, which share their light."""
        least = len(rows) + (self.more > 1)  # 1.05 times 10 are 11
        num = min(self.most, max(least, int(self.more * len(rows)))) - len(rows)
        if num <= 0:
            return rows
        _, host = self.hosts(rows.opacities, num, generator)
        rows = divided(rows, host)
        return rows.with_new({name: value[host] for name, value in rows.values.items()})

    def hosts(
        self, opacities: Float[Tensor, "N"], num: int, generator: torch.Generator
    ) -> tuple[Int[Tensor, "M"], Int[Tensor, "M"]]:
        """Which of `num` guests find a place, and the rows that take them in, drawn by their opacity.

        A row takes in no more than leaves each of them twice the opacity at which Gaussians die: else scenes that fade
        are divided ever further, until nothing is left (row 37 of LOG.md).
        """
        import torch

        host = torch.multinomial(opacities.double().cpu(), num, replacement=True, generator=generator)
        room = torch.log1p(-opacities.double().cpu().clamp(max=1 - 1e-9)) / math.log1p(-2 * self.faint - 1e-12)
        order = host.argsort(stable=True)
        first = torch.searchsorted(host[order], host[order])  # of the guests of the same host
        turn = torch.empty_like(order).index_copy_(0, order, torch.arange(num) - first)
        guest = (turn + 2 <= room[host].clamp(max=MOST_SHARES)).nonzero()[:, 0]
        return guest.to(opacities.device), host[guest].to(opacities.device)

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


def divided(rows: Rows, host: Int[Tensor, "M"]) -> Rows:
    """With the light of each host shared out between it and those that come to it; it is another Gaussian then."""
    import torch

    from align3d.scenes.density.rows import shared

    counts = torch.bincount(host, minlength=len(rows))
    place = counts.nonzero()[:, 0]
    opacities, scales = shared(rows.opacities[place], rows.scales[place], counts[place] + 1)
    return rows.written(place, {"logit_opacities": opacities.logit(), "log_scales": scales.log()}, new=True)
