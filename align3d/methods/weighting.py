"""How much each of N noise candidates counts in a distillation step, from their rewards (RewardSDS, arXiv 2503.09601).

Coefficients c_i multiply the candidates' gradients; those of candidates that do not count are 0. Each scene chooses
among its own candidates. Only the order or the softmax of rewards matters, so a reward needs no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

KINDS = ("none", "best", "min-max", "weighted")


@dataclass(frozen=True)
class Weighting:
    """Coefficients of noise candidates; a single candidate counts 1, whatever the kind."""

    kind: Literal["none", "best", "min-max", "weighted"] = "none"  # none takes one candidate and no reward
    num_best: int = 1  # best: so many of the highest reward count, 1 / num_best each
    num_max: int = 2  # min-max: so many of the highest reward share lambda_max
    num_min: int = 2  # min-max: so many of the lowest share -lambda_min
    lambda_max: float = 0.9  # min-max, 0 to 1
    lambda_min: float = 0.1  # min-max, 0 to 1
    temperature: float = 1.0  # weighted: of the softmax over rewards; lower looks at the best alone
    zscore: bool = True  # weighted: whether rewards are first brought to mean 0 and deviation 1 among the candidates
    per_loss: bool = False  # divide by the number of candidates that count, as the published 2D code does

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"weighting must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if min(self.num_best, self.num_max) < 1 or self.num_min < 0:
            got = f"{self.num_best}, {self.num_max} and {self.num_min}"
            raise ValueError(f"weighting: num_best and num_max must be 1 or more and num_min 0 or more, got {got}")
        if not (0 <= self.lambda_max <= 1 and 0 <= self.lambda_min <= 1):
            raise ValueError(f"weighting: lambdas must be 0 to 1, got {self.lambda_max} and {self.lambda_min}")
        if self.kind == "min-max" and not self.lambda_max and not (self.lambda_min and self.num_min):
            raise ValueError("weighting: with both lambdas 0 no candidate counts")
        if not 1e-6 <= self.temperature <= 1e6:
            raise ValueError(f"weighting: temperature must be 1e-6 to 1e6, got {self.temperature}")

    @property
    def least(self) -> int:
        """The fewest candidates that there is a choice from."""
        return {"best": self.num_best, "min-max": self.num_max + self.num_min}.get(self.kind, 1)

    def check(self, num: int) -> None:
        """Refuse a number of candidates that there is no choice from.

        Raises:
            ValueError: Says how many are needed.
        """
        if num < 1 or 1 < num < self.least:
            raise ValueError(f"weighting {self.kind} needs {self.least} candidates or more, or 1 for none, got {num}")
        if self.kind == "none" and num > 1:
            raise ValueError(f"{num} candidates need a weighting; choose best, min-max or weighted")

    def __call__(self, reward: Float[Tensor, "N B"]) -> Float[Tensor, "N B"]:
        """The coefficients.

        Args:
            reward: Of N candidates for each of B scenes; finite.

        Returns:
            Constants; 1 in sum for best and weighted, lambda_max - lambda_min for min-max, which per_loss divides.

        Raises:
            ValueError: As `check`.
        """
        import torch

        num = len(reward)
        self.check(num)
        reward = reward.detach()
        c = torch.zeros_like(reward)
        if num == 1:
            return c + 1
        if self.kind == "weighted":
            return torch.softmax(self.spread(reward) / self.temperature, 0) / (num if self.per_loss else 1)
        order = reward.argsort(dim=0, descending=True, stable=True)  # of equal candidates, the first drawn
        if self.kind == "best":
            c.scatter_(0, order[: self.num_best], 1 / self.num_best)
            return c / (self.num_best if self.per_loss else 1)
        c.scatter_(0, order[: self.num_max], self.lambda_max / self.num_max)
        if self.num_min:
            c.scatter_(0, order[num - self.num_min :], -self.lambda_min / self.num_min)
        return c / (self.num_max + self.num_min if self.per_loss else 1)

    def keep(self, reward: Float[Tensor, "N B"], num: int) -> Int[Tensor, "K B"]:
        """Which candidates may still count: the numbers of `num` of each scene, in the order drawn.

        They are those of the highest reward; for min-max, in part those of the lowest, as many as their share is.
        """
        import torch

        order = reward.detach().argsort(dim=0, descending=True, stable=True)
        low = num * self.num_min // self.least if self.kind == "min-max" else 0
        return torch.cat([order[: num - low], order[len(order) - low :]]).sort(0).values

    def spread(self, reward: Float[Tensor, "N B"]) -> Float[Tensor, "N B"]:
        """Rewards as the softmax takes them; all 0 where candidates do not differ."""
        import torch

        if not self.zscore:
            return reward
        exact = reward.double()
        centred = exact - exact.mean(0)
        std = exact.std(0, correction=0)
        return torch.where(std > 1e-6 * exact.abs().mean(0), centred / std.clamp_min(1e-300), 0.0).to(reward.dtype)
