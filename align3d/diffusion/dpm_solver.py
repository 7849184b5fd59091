"""DPM-Solver++: the deterministic path from noise to data, in steps of high order (Lu et al. 2022, arXiv 2211.01095).

Between two noise levels, with lambda = log(alpha / sigma), h = lambda_t - lambda_s and the data prediction x0,

    x_t = sigma_t / sigma_s x_s + alpha_t (1 - e^-h) D

where D is x0 at s (order 1) or extrapolated from several predictions. `multistep` uses those of earlier steps, at times
that are even; `adaptive` compares orders 1 and 2 and chooses its steps by the difference, for each row by itself.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from align3d.diffusion.schedule import DiscreteVP, bcast

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Int
    from torch import Tensor

    # (x, t, rows) -> x0, in any type; rows are the numbers of those of the whole batch that x and t are of
    Denoise = Callable[[Float[Tensor, "R *L"], Float[Tensor, "R"], Int[Tensor, "R"]], Float[Tensor, "R *L"]]

CUT = -5.1  # lambda below which entries of a table are left out
END = 1e-3  # where the path ends, as published
FIRST, ABSOLUTE, RELATIVE, SAFETY, CLOSE = 0.05, 0.0078, 0.05, 0.9, 1e-5  # of the adaptive solver
MOST = 1000  # steps that it tries


class Lost(FloatingPointError):
    """The solver cannot go on."""

    def __init__(self, said: str, row: int) -> None:
        super().__init__(said)
        self.row = row  # of the batch, the first for which it cannot


@dataclass(frozen=True)
class Levels:
    """A schedule's table at any time in (0, 1], its noisiest entries left out: log alpha is straight between entries.

    Entry n of the N that stay is at time (n + 1) / N.
    """

    schedule: DiscreteVP

    @functools.cached_property
    def num(self) -> int:
        """The entries that stay, N."""
        return len(_table(self.schedule, torch.device("cpu")))

    def log_alpha(self, t: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """Straight on beyond the first and the last entry. Float64, whatever t is."""
        return self._straight(t.double() * self.num - 1, _table(self.schedule, t.device))

    def alpha(self, t: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """The factor of the data."""
        return self.log_alpha(t).exp()

    def sigma(self, t: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """The factor of the noise."""
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def lam(self, t: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """Lambda = log(alpha / sigma)."""
        return self.log_alpha(t) - self.sigma(t).log()

    def time(self, lam: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """The time of a lambda; the inverse of `lam`."""
        log_alpha = -0.5 * torch.nn.functional.softplus(-2 * lam.double())
        table = _table(self.schedule, lam.device)
        upper = torch.searchsorted(-table, -log_alpha).clamp(1, self.num - 1)
        low, high = table[upper - 1], table[upper]
        return (upper + (log_alpha - low) / (high - low)) / self.num

    def _straight(self, position: Tensor, table: Tensor) -> Tensor:
        lower = position.floor().long().clamp(0, self.num - 2)
        return torch.lerp(table[lower], table[lower + 1], position - lower)


@functools.lru_cache(maxsize=32)
def _table(schedule: DiscreteVP, device: torch.device) -> Float[Tensor, "N"]:
    """Log alpha of the entries that stay, float64."""
    at = torch.arange(schedule.num_steps, dtype=torch.float64) / (schedule.num_steps - 1)
    log_alpha, log_sigma = schedule.alpha(at).log(), schedule.sigma(at).log()
    return log_alpha[log_alpha - log_sigma >= CUT].to(device)


def step(
    levels: Levels, x: Float[Tensor, "B *L"], s: Float[Tensor, "B"], t: Float[Tensor, "B"], x0: Float[Tensor, "B *L"]
) -> Float[Tensor, "B *L"]:
    """From times s to times t with data x0."""
    keep, gain = levels.sigma(t) / levels.sigma(s), -levels.alpha(t) * torch.expm1(levels.lam(s) - levels.lam(t))
    return bcast(keep, x) * x + bcast(gain, x) * x0


def multistep(
    denoise: Denoise,
    x: Float[Tensor, "B *L"],
    levels: Levels,
    steps: int,
    order: int,
    end: float = END,
    tell: Callable[[float], None] | None = None,
) -> Float[Tensor, "B *L"]:
    """Steps at even times from 1 to `end`.

    Args:
        denoise: The clean data that x at times t stands for, as the network sees it.
        x: Standard normal.
        levels: Noise levels.
        steps: At least as many as the order; with fewer than 10, the last ones are of lower order.
        order: 2 or 3.
        end: The last time.
        tell: Called before each step with the share of them that is done.

    Raises:
        ValueError: If order or steps do not do.

    Source: DPM-Solver++(2M) and (3M), arXiv 2211.01095, algorithm 2 and appendix B, as the authors' code has them.
    """
    if order not in (2, 3) or steps < order:
        raise ValueError(f"multistep takes order 2 or 3 and at least as many steps, got order {order}, {steps} steps")
    times = torch.linspace(1, end, steps + 1, dtype=torch.float64, device=x.device)
    rows = torch.arange(len(x), device=x.device)
    seen: list[tuple[Tensor, Tensor]] = []  # lambda and data of the latest steps, newest last
    for k in range(steps):
        if tell is not None:
            tell(k / steps)
        s, t = (time.expand(len(x)) for time in (times[k], times[k + 1]))
        seen = [*seen[1 - order :], (levels.lam(s), denoise(x, s, rows).to(x.dtype))]
        now = min(len(seen), steps - k) if steps < 10 else len(seen)
        x = _multi(levels, x, s, t, seen[-now:])
    return x


def _multi(levels: Levels, x: Tensor, s: Tensor, t: Tensor, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
    """One step of the order that there are predictions for."""
    h = levels.lam(t) - seen[-1][0]
    now = seen[-1][1]
    if len(seen) == 1:
        return step(levels, x, s, t, now)
    r0 = (seen[-1][0] - seen[-2][0]) / h
    first = (now - seen[-2][1]) / bcast(r0, x)
    if len(seen) == 2:
        return step(levels, x, s, t, now + 0.5 * first)
    r1 = (seen[-2][0] - seen[-3][0]) / h
    second = (first - (seen[-2][1] - seen[-3][1]) / bcast(r1, x)) / bcast(r0 + r1, x)
    alpha, phi1 = levels.alpha(t), torch.expm1(-h)
    phi2 = phi1 / h + 1
    phi3 = phi2 / h - 0.5
    x = step(levels, x, s, t, now)
    return x + bcast(alpha * phi2, x) * (first + bcast(r0, x) * second) - bcast(alpha * phi3, x) * second


def adaptive(
    denoise: Denoise,
    x: Float[Tensor, "B *L"],
    levels: Levels,
    end: float = END,
    absolute: float = ABSOLUTE,
    relative: float = RELATIVE,
    tell: Callable[[float], None] | None = None,
) -> Float[Tensor, "B *L"]:
    """Steps of orders 1 and 2, as long as their difference allows, from time 1 to `end`.

    Each row has steps of its own; what has arrived is not computed any more.

    Args:
        denoise: The clean data that x at times t stands for; asked twice for a step.
        x: Standard normal.
        levels: Noise levels.
        end: The last time.
        absolute: Error of a number that is allowed in a step, at least.
        relative: The same, as a share of its size.
        tell: Called before each step with the share of the way in lambda that lies behind the noisiest row.

    Raises:
        Lost: If x is not finite any more, or a row has not arrived after 1000 steps.

    Source: DPM-Solver, arXiv 2206.00927, appendix C.2 (DPM-Solver-12); tolerances of Jolicoeur-Martineau et al. 2021.
    """
    x, lower = x.clone(), x.clone()  # the latter: what order 1 made of the step before
    s = torch.ones(len(x), dtype=torch.float64, device=x.device)
    h = torch.full_like(s, FIRST)
    begun, last = levels.lam(s), levels.lam(torch.full_like(s, end))
    rows = torch.arange(len(x), device=x.device)
    for _ in range(MOST):
        rows = rows[(s[rows] - end).abs() > CLOSE]
        if not len(rows):
            return x
        at, now = x[rows], s[rows]
        if tell is not None:
            tell(float(((levels.lam(now) - begun[rows]) / (last - begun)[rows]).min()))
        t = levels.time(levels.lam(now) + h[rows])
        first, second = _both(denoise, at, levels, now, t, rows)
        scale = torch.maximum(first.abs(), lower[rows].abs()).mul(relative).clamp_min(absolute)
        error = ((second - first) / scale).double().square().flatten(1).mean(1).sqrt()
        if not bool(error.isfinite().all()):
            bad = int((~error.isfinite()).nonzero()[0])
            raise Lost(f"non-finite prediction at time {float(now[bad]):.4f}", int(rows[bad]))
        good = error <= 1
        took = rows[good]
        x[took], lower[took], s[took] = second[good], first[good], t[good]
        h[rows] = torch.minimum(SAFETY * h[rows] * error.clamp_min(1e-12) ** -0.5, last[rows] - levels.lam(s[rows]))
    raise Lost(f"no end after {MOST} steps of the adaptive sampler, as predictions jump", int(rows[0]))


def _both(denoise: Denoise, x: Tensor, levels: Levels, s: Tensor, t: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """A step of order 1, and one of order 2 by way of the middle in lambda."""
    middle = levels.time((levels.lam(s) + levels.lam(t)) / 2)
    now = denoise(x, s, rows).to(x.dtype)
    then = denoise(step(levels, x, s, middle, now), middle, rows).to(x.dtype)
    return step(levels, x, s, t, now), step(levels, x, s, t, then)
