"""What all ways to change the number of Gaussians have in common; by itself, the way that leaves it alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from align3d.rng import Streams
    from align3d.scenes.density.rows import Rows

LIMIT = 1 << 24  # Gaussians that a scene may be allowed to have; more cannot be drawn from
GROWTH = 4  # times as many as at the start there may be, where nothing is said


@dataclass(frozen=True)
class Density:
    """The number of Gaussians stays what it is at the start."""

    watches: ClassVar[bool] = False  # whether it wants to know what the views pull at each Gaussian
    changes: ClassVar[bool] = False  # whether it does anything

    def refine(self, rows: Rows, done: int, rng: Streams, rate: float) -> Rows:
        """What becomes of the Gaussians between two updates.

        Of a density that `sized` has made.

        Args:
            rows: The Gaussians, and what pulled at them since the last change.
            done: Updates done.
            rng: Of the next update, shared by all processes.
            rate: Learning rate of the means in it.

        Returns:
            The same object if all stays as it is.
        """
        return rows

    def penalties(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalars to be added to the loss, by name; `values` are the parameters of the Gaussians."""
        return {}

    def sized(self, num: int) -> Density:
        """The same for a scene that begins with so many Gaussians.

        Raises:
            ValueError: If there are more than there may be.
        """
        return self


@dataclass(frozen=True)
class Refining(Density):
    """What those have in common that change it now and then."""

    changes: ClassVar[bool] = True

    every: int = 25  # updates between two changes
    first: int = 25  # updates before the first change
    last: int = 0  # updates after which there are no more changes; 0 = they go on to the end
    most: int = 0  # Gaussians that there may be, at most 16777216; 0 = four times as many as at the start

    def __post_init__(self) -> None:
        if self.every < 1 or min(self.first, self.last) < 0:
            got = f"{self.every}, {self.first} and {self.last}"
            raise ValueError(f"scene.density: every must be 1 or more, first and last 0 or more, got {got}")
        if not 0 <= self.most <= LIMIT:
            raise ValueError(f"scene.density.most must be 0 to {LIMIT} Gaussians, got {self.most}")

    def due(self, done: int) -> bool:
        """Whether there is a change after so many updates."""
        return done >= self.first and done % self.every == 0 and not 0 < self.last < done

    def sized(self, num: int) -> Density:
        """See Density."""
        if 0 < self.most < num:
            raise ValueError(f"the scene begins with {num} Gaussians, scene.density.most allows {self.most}; raise it")
        return self if self.most else replace(self, most=max(num, min(GROWTH * num, LIMIT)))


def between(low: float, high: float, **values: float) -> None:
    """Refuse options outside their limits.

    Raises:
        ValueError: Names the first.
    """
    for name, value in values.items():
        if not low <= value <= high or not math.isfinite(value):
            raise ValueError(f"scene.density.{name} must be {low:g} to {high:g}, got {value}")
