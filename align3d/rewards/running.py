"""How large a reward is and how much it differs between samples, along a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float
    from torch import Tensor

FIELDS = ("first_mean", "first_std", "mean", "std")
LEAST = 1e-6  # of the size of the mean; a standard deviation below is rounding
FLOOR = 0.05  # of the standard deviation before training; the one that divides is no smaller


class Running:
    """Mean and standard deviation of a reward: before training, and over the last updates.

    What is added during an update counts from the next on, and what other processes have added with it: the numbers
    in use are the same for all samples of an update, however these are split.

    Args:
        span: Updates that the mean reaches back: each new one counts 1 / span.
    """

    def __init__(self, span: float) -> None:
        self.span = span
        self.numbers: dict[str, float] = {}  # FIELDS; empty before the first `advance`
        self.sums: Tensor | None = None  # number of values, their sum, the sum of their squares; less the mean in use

    def add(self, values: Float[Tensor, "n"]) -> None:
        """See some values."""
        import torch

        if not len(values):
            return
        exact = values.detach().double() - self.numbers.get("mean", 0.0)
        sums = torch.stack([torch.full_like(exact[:1], len(exact))[0], exact.sum(), exact.square().sum()])
        self.sums = sums if self.sums is None else self.sums + sums

    def seen(self) -> dict[str, float]:
        """The sums since the last `advance`; nothing if nothing was added."""
        return {} if self.sums is None else dict(zip(("count", "sum", "squares"), self.sums.tolist(), strict=True))

    def advance(self, sums: Mapping[str, float]) -> None:
        """Take over what `seen` gave, the mean over the processes, and begin anew."""
        self.sums = None
        if not sums:
            return
        new = sums["sum"] / sums["count"]
        variance = max(sums["squares"] / sums["count"] - new**2, 0.0)
        if not self.numbers:
            self.numbers = dict(zip(FIELDS, 2 * (new, math.sqrt(variance)), strict=True))
            return
        share = 1 / self.span
        old = self.numbers["std"] ** 2
        self.numbers["mean"] += share * new
        self.numbers["std"] = math.sqrt((1 - share) * old + share * variance + share * (1 - share) * new**2)

    def scaled(self, values: Float[Tensor, "n"], first: bool = False) -> Float[Tensor, "n"]:
        """Values less the mean, in standard deviations; gradient to the values alone.

        Args:
            values: Of the reward.
            first: Whether by the numbers from before training, which never change.
        """
        mean, std = (self.numbers["first_" * first + name] for name in ("mean", "std"))
        return (values - mean) / max(std, FLOOR * self.numbers["first_std"], 1e-30)

    @property
    def flat(self) -> bool:
        """Whether samples did not differ before training."""
        return self.numbers["first_std"] <= LEAST * abs(self.numbers["first_mean"])
