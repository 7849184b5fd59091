"""Gaussians as rows of parameters that are copied, split, moved and dropped; each row knows where it comes from.

An optimiser goes on with the moments of the rows that were there before, and begins anew with the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from align3d.scenes.raster.projection import rotation

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

NEW = -1  # the source of a row that was not there before
OPAQUE = 1 - 1e-4  # opacity whose logit is finite


@dataclass(frozen=True)
class Rows:
    """N Gaussians by their unbounded parameters."""

    values: dict[str, Tensor]  # means, quats, log_scales, logit_opacities, logit_colors; (N, ...)
    source: Int[Tensor, "N"]  # which row each one was; NEW: none, and its moments are zero
    pull: Float[Tensor, "N"] | None = None  # mean norm of the gradient by the projected mean, over views that see it
    forget: tuple[str, ...] = ()  # parameters whose moments are zero in all rows

    @classmethod
    def of(cls, values: dict[str, Tensor], pull: Float[Tensor, "N"] | None = None) -> Rows:
        """Gaussians as they are."""
        values = {name: value.detach() for name, value in values.items()}
        return cls(values, torch.arange(len(values["means"]), device=values["means"].device), pull)

    def __len__(self) -> int:
        """N."""
        return len(self.source)

    @property
    def scales(self) -> Float[Tensor, "N 3"]:
        """Standard deviations, scene units."""
        return self.values["log_scales"].exp()

    @property
    def opacities(self) -> Float[Tensor, "N"]:
        """In (0, 1)."""
        return self.values["logit_opacities"].sigmoid()

    def kept(self, which: Bool[Tensor, "N"]) -> Rows:
        """Those alone; the most opaque one, if that were none."""
        if not bool(which.any()):
            which = torch.arange(len(self), device=which.device) == self.opacities.argmax()
        return self._map(lambda x: x[which])

    def with_new(self, values: dict[str, Tensor]) -> Rows:
        """These, and behind them new ones."""
        num = len(values["means"])
        return replace(
            self,
            values={name: torch.cat([old, values[name]]) for name, old in self.values.items()},
            source=torch.cat([self.source, self.source.new_full((num,), NEW)]),
            pull=None if self.pull is None else torch.cat([self.pull, self.pull.new_zeros(num)]),
        )

    def written(self, which: Int[Tensor, "M"], values: dict[str, Tensor], new: bool) -> Rows:
        """With some parameters of some rows overwritten; `new`: they are other Gaussians from now on."""
        made = dict(self.values)
        for name, value in values.items():
            made[name] = made[name].index_copy(0, which, value)
        source = self.source.index_fill(0, which, NEW) if new else self.source
        return replace(self, values=made, source=source)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Rows:
        return replace(
            self,
            values={name: function(value) for name, value in self.values.items()},
            source=function(self.source),
            pull=None if self.pull is None else function(self.pull),
        )


def shared(
    opacities: Float[Tensor, "N"], scales: Float[Tensor, "N 3"], num: Int[Tensor, "N"]
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N 3"]]:
    """Opacity and scales of each of `num` Gaussians in one place that look like one.

    Behind each other they let through what the one lets through in its middle, and along a line through it they take
    as much light. Source: Kheradmand et al. 2024 (3DGS-MCMC), eq. 9, its double sum by the hockey-stick identity:
    sum over k from 1 to n of (n over k) (-1)^(k+1) o^k / sqrt(k).
    """
    whole, n = opacities.double().clamp(max=OPAQUE), num.double()
    part = -torch.expm1(torch.log1p(-whole) / n)
    total = torch.zeros_like(part)
    most = int(num.max()) if len(num) else 0
    for k in range(1, most + 1):
        choose = torch.tensor([math.comb(i, k) for i in range(most + 1)], dtype=part.dtype, device=part.device)
        total = total + choose[num] * (-1) ** (k + 1) * part**k / math.sqrt(k)
    return part.to(opacities), scales * (whole / total).to(scales)[:, None]


def cloned(rows: Rows, which: Bool[Tensor, "N"]) -> Rows:
    """Each of some Gaussians twice in its place, such that the two look like the one; the first keeps its moments."""
    place = which.nonzero()[:, 0]
    if not len(place):
        return rows
    opacities, scales = shared(rows.opacities[place], rows.scales[place], torch.full_like(place, 2))
    rows = rows.written(place, {"logit_opacities": opacities.logit(), "log_scales": scales.log()}, new=False)
    return rows.with_new({name: value[place] for name, value in rows.values.items()})


def split(rows: Rows, which: Bool[Tensor, "N"], shrink: float, generator: torch.Generator) -> Rows:
    """Two smaller Gaussians for each of some, drawn opposite each other in it; opacities and colours stay.

    Of the pair, the mean is that of the one, and so is the expected covariance: with scales of 1 / shrink, the places
    have a standard deviation of sqrt(1 - 1 / shrink^2). (3DGS draws two places with all of the covariance.)
    """
    place = which.nonzero()[:, 0]
    if not len(place):
        return rows
    old = {name: value[place] for name, value in rows.values.items()}
    spread = math.sqrt(1 - 1 / shrink**2)
    drawn = torch.randn(len(place), 3, generator=generator).to(old["means"])
    away = torch.einsum("nij,nj->ni", rotation(old["quats"], normalize=True), spread * old["log_scales"].exp() * drawn)
    old["log_scales"] = old["log_scales"] - math.log(shrink)
    halves = [old | {"means": old["means"] + sign * away} for sign in (1, -1)]
    new = {name: torch.cat([half[name] for half in halves]) for name in old}
    return rows.with_new(new).kept(torch.cat([~which, which.new_ones(2 * len(place))]))
