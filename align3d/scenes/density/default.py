"""Clone and split what the views pull at, drop what is faint or large: the density control of 3D Gaussian Splatting.

Source: Kerbl et al. 2023, section 5.2, as gsplat's DefaultStrategy has it, but for this: what "pulled at" means goes by
the scene's own mean, since the size of a distillation's loss has no meaning; a clone and its original together look
like the one before, where the paper makes the place more opaque; halves of a split lie opposite each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from align3d.scenes.density.base import Refining, between

if TYPE_CHECKING:
    from jaxtyping import Bool
    from torch import Tensor

    from align3d.rng import Streams
    from align3d.scenes.density.rows import Rows

ROUNDED = 1.001  # times an opacity, and it is above that however it is rounded


@dataclass(frozen=True)
class CloneSplit(Refining):
    """Gaussians that the views pull at are cloned or split, faint and large ones dropped (3D Gaussian Splatting)."""

    watches: ClassVar[bool] = True

    grow: float = 2.0  # times the mean pull of those that are seen, above which a Gaussian is doubled
    size: float = 0.02  # largest scale up to which it is cloned, scene units; larger ones are split
    shrink: float = 1.6  # by which the scales of a split Gaussian are divided
    faint: float = 0.01  # opacity below which a Gaussian is dropped
    large: float = 0.2  # largest scale above which it is dropped, scene units; 0 = none is
    reset: int = 0  # updates between two cuts of all opacities to twice `faint`, up to `last`; 0 = none

    def __post_init__(self) -> None:
        super().__post_init__()
        between(0.0, 1e6, grow=self.grow, size=self.size, large=self.large)
        between(1.01, 100.0, shrink=self.shrink)
        between(0.0, 0.5, faint=self.faint)
        if self.reset < 0 or (self.reset and not 0 < self.faint < 0.5):
            raise ValueError(
                f"scene.density.reset must be 0 or more updates, and wants a `faint` above 0 and below 0.5; got "
                f"{self.reset} and {self.faint}"
            )
        if self.reset and not self.last:
            raise ValueError(
                f"scene.density.reset {self.reset} wants a `last`, after which nothing is cut any more and "
                f"opacities recover; a half of all updates is usual"
            )

    def refine(self, rows: Rows, done: int, rng: Streams, rate: float) -> Rows:
        """See Density."""
        from torch.nn.functional import pad

        from align3d.scenes.density.rows import cloned, split

        if self.due(done):
            doubled, small = self.doubled(rows), rows.scales.amax(1) <= self.size
            rows = cloned(rows, doubled & small)
            halved = pad(doubled & ~small, (0, len(rows) - len(small)))  # clones are not split
            rows = split(rows, halved, self.shrink, rng.common("split"))
            rows = rows.kept(self.sound(rows))
        return self.dimmed(rows) if self.reset and done % self.reset == 0 and done <= self.last else rows

    def doubled(self, rows: Rows) -> Bool[Tensor, "N"]:
        """Which become two: those that are pulled at most, if not all may; none that would be dropped then."""
        seen = rows.pull > 0
        wanted = rows.pull > self.grow * (rows.pull.sum() / seen.sum().clamp_min(1))
        wanted &= self.bright(rows)
        room = self.most - len(rows)
        if int(wanted.sum()) > room:
            order = rows.pull.masked_fill(~wanted, -1).argsort(descending=True, stable=True)
            wanted = wanted.new_zeros(len(rows)).index_fill(0, order[:room], True)
        return wanted

    def bright(self, rows: Rows) -> Bool[Tensor, "N"]:
        """Which would not be dropped as faint once they are two: clones share their opacity, halves keep it."""
        opacities, small = rows.opacities, rows.scales.amax(1) <= self.size
        clone = 1 - (1 - opacities).sqrt()
        return clone.where(small, opacities) >= ROUNDED * self.faint

    def sound(self, rows: Rows) -> Bool[Tensor, "N"]:
        """Which are neither faint nor large."""
        sound = rows.opacities >= self.faint
        return sound & (rows.scales.amax(1) <= self.large) if self.large else sound

    def dimmed(self, rows: Rows) -> Rows:
        """With no opacity above twice `faint`, and its optimiser begun anew."""
        from dataclasses import replace

        import torch

        values = dict(rows.values)
        most = torch.logit(values["logit_opacities"].new_tensor(2 * self.faint))
        values["logit_opacities"] = values["logit_opacities"].clamp(max=most)
        return replace(rows, values=values, forget=("logit_opacities",))
