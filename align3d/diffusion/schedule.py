"""Noise schedules x_t = alpha(t) x_0 + sigma(t) eps, and the conversions between what networks predict.

Time runs from t = 1 (noise) to t = 0 (data). Discrete schedules map t to a table index here and nowhere else.
Tables are float64: 1 - alpha_bar loses half of its digits in float32 near the data.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


@runtime_checkable
class Schedule(Protocol):
    """Alpha and sigma at any time in [0, 1], in the type and on the device of t."""

    def alpha(self, t: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """The factor of the data."""
        ...

    def sigma(self, t: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """The factor of the noise."""
        ...


@dataclass(frozen=True)
class DiscreteVP:
    """Variance preserving over a table of levels: alpha^2 + sigma^2 = 1. Defaults: DDPM (Ho et al. 2020)."""

    num_steps: int = 1000  # entries of the table
    beta_start: float = 1e-4  # variance added by the first entry; unread by "cosine"
    beta_end: float = 0.02  # variance added by the last entry; unread by "cosine"
    kind: Literal["linear", "scaled_linear", "cosine"] = "linear"  # scaled_linear: linear in sqrt(beta)
    spacing: Literal["linspace", "trailing"] = "linspace"  # of a sampler's times; trailing: equal steps from the noise

    def __post_init__(self) -> None:
        if self.num_steps < 2:
            raise ValueError(f"num_steps must be at least 2, got {self.num_steps}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"betas must satisfy 0 < start <= end < 1, got {self.beta_start} and {self.beta_end}")
        if self.kind not in ("linear", "scaled_linear", "cosine"):
            raise ValueError(f"kind must be linear, scaled_linear or cosine, got {self.kind!r}")
        if self.spacing not in ("linspace", "trailing"):
            raise ValueError(f"spacing must be linspace or trailing, got {self.spacing!r}")

    def index(self, t: Float[Tensor, "*B"]) -> Int[Tensor, "*B"]:
        """The entry nearest to time t, halves to even: t = 1 is num_steps - 1, t = 0 is 0.

        The position is first rounded to 1e-3 of an entry, so that float32 times meet halves exactly. Published
        samplers round numpy's linspace, whose own last digit decides some halves the other way (30 steps: 499).
        """
        position = t.double() * (self.num_steps - 1)
        return ((position * 1000).round() / 1000).round().long().clamp(0, self.num_steps - 1)

    def alpha(self, t: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """sqrt(alpha_bar) at the entry nearest to t, no gradient."""
        return _vp_tables(self, t.device)[0].take(self.index(t)).to(t.dtype)  # a copy, also for t of shape ()

    def sigma(self, t: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """sqrt(1 - alpha_bar) at the entry nearest to t, no gradient. Never 0: 0.01 at t = 0 for the defaults."""
        return _vp_tables(self, t.device)[1].take(self.index(t)).to(t.dtype)

    def times(self, steps: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "T"]:
        """The T = steps + 1 times of a sampler, from 1 down to 0, evenly or as `spacing` has it.

        Raises:
            ValueError: If there are no steps, or so many that two times would be at one entry.
        """
        even, trailing = _times(steps), self.spacing == "trailing"
        # of shorter trailing steps the last one would begin at entry 0, where it ends
        most = 2 * self.num_steps // 3 if trailing else self.num_steps - 1
        if steps > most:
            raise ValueError(f"{self.spacing} spacing takes at most {most} steps, got {steps}")
        if trailing:
            index = (even * self.num_steps).round() - 1
            even = index.clamp_min(0) / (self.num_steps - 1)
        return even.to(dtype)


@dataclass(frozen=True)
class Flow:
    """Straight paths (flow matching, rectified flow): alpha = 1 - t, sigma = t."""

    alpha_min: float = 1e-3  # alpha at t = 1; at 0 a noise prediction would say nothing about the data
    shift: float = 1.0  # of a sampler's times, t to shift t / (1 + (shift - 1) t): above 1, more of them are noisy
    end: float = 0.0  # before the shift, the last time of a sampler above 0; 0 = equal steps down to 0

    def __post_init__(self) -> None:
        if not 0 < self.alpha_min < 1:
            raise ValueError(f"alpha_min must lie between 0 and 1, got {self.alpha_min}")
        if not 0 < self.shift < math.inf or not 0 <= self.end < 1:
            raise ValueError(f"shift must be above 0 and end in [0, 1), got {self.shift} and {self.end}")

    def alpha(self, t: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """1 - t, at least alpha_min."""
        return (1 - t).clamp_min(self.alpha_min)

    def sigma(self, t: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """t, at most 1 - alpha_min."""
        return t.clamp_max(1 - self.alpha_min)

    def times(self, steps: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "T"]:
        """The T = steps + 1 times of a sampler, from 1 down to 0, evenly before the shift.

        With `end`, as in diffusers' FlowMatchEulerDiscreteScheduler, the last step is another one: from `end` to 0.
        """
        t = _times(steps)
        if self.end:
            t = torch.cat([torch.linspace(1, self.end, steps, dtype=torch.float64), t[-1:]])
        return (self.shift * t / (1 + (self.shift - 1) * t)).to(dtype)


def _times(steps: int) -> Float[Tensor, "T"]:
    """Evenly from 1 down to 0, float64."""
    if steps < 1:
        raise ValueError(f"a sampler needs at least 1 step, got {steps}")
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


@functools.lru_cache(maxsize=32)
def _vp_tables(schedule: DiscreteVP, device: torch.device) -> tuple[Tensor, Tensor]:
    """Alpha and sigma of every entry in float64; the logarithm keeps 1 - alpha_bar exact where it is tiny."""
    n = schedule.num_steps
    if schedule.kind == "cosine":  # Nichol and Dhariwal 2021, eq. 17
        at = torch.arange(n + 1, dtype=torch.float64) / n
        bar = torch.cos((at + 0.008) / 1.008 * math.pi / 2) ** 2
        beta = (1 - bar[1:] / bar[:-1]).clamp_max(0.999)
    elif schedule.kind == "scaled_linear":
        beta = torch.linspace(schedule.beta_start**0.5, schedule.beta_end**0.5, n, dtype=torch.float64) ** 2
    else:
        beta = torch.linspace(schedule.beta_start, schedule.beta_end, n, dtype=torch.float64)
    log_bar = torch.log1p(-beta).cumsum(0)
    return torch.exp(log_bar / 2).to(device), torch.sqrt(-torch.expm1(log_bar)).to(device)


def bcast(v: Float[Tensor, "*B"], like: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """(B,) as (B, 1, ..., 1), in the type of `like` and with as many axes; () stays a scalar."""
    return v.reshape(v.shape + (1,) * (like.ndim - v.ndim if v.ndim else 0)).to(like.dtype)


def at_least(value: Float[Tensor, "..."], dtype: torch.dtype) -> Float[Tensor, "..."]:
    """The same numbers, in `dtype` or in their own type, whichever has more digits."""
    return value.to(torch.promote_types(value.dtype, dtype))


def _levels(schedule: Schedule, t: Tensor, x: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha and sigma, in the type that has more digits."""
    like = at_least(x, prediction.dtype)
    return bcast(schedule.alpha(t.double()), like), bcast(schedule.sigma(t.double()), like)


def add_noise(
    schedule: Schedule, x0: Float[Tensor, "B *L"], eps: Float[Tensor, "B *L"], t: Float[Tensor, "*T"]
) -> Float[Tensor, "B *L"]:
    """The state alpha x_0 + sigma eps at time t, (B,) or ()."""
    a, b = _levels(schedule, t, x0, eps)
    return a * x0 + b * eps


def x0_from_eps(
    schedule: Schedule, x: Float[Tensor, "B *L"], eps: Float[Tensor, "B *L"], t: Float[Tensor, "*T"]
) -> Float[Tensor, "B *L"]:
    """The data that x at time t stands for if its noise is eps. Gradient: to x and eps."""
    a, b = _levels(schedule, t, x, eps)
    return (x - b * eps) / a


def eps_from_x0(
    schedule: Schedule, x: Float[Tensor, "B *L"], x0: Float[Tensor, "B *L"], t: Float[Tensor, "*T"]
) -> Float[Tensor, "B *L"]:
    """The noise in x at time t if its data is x_0; undefined where sigma is 0."""
    a, b = _levels(schedule, t, x, x0)
    return (x - a * x0) / b


def eps_from_v(
    schedule: Schedule, x: Float[Tensor, "B *L"], v: Float[Tensor, "B *L"], t: Float[Tensor, "*T"]
) -> Float[Tensor, "B *L"]:
    """The noise in x if the network says v = alpha eps - sigma x_0; variance-preserving schedules only.

    Source: Salimans and Ho 2022, appendix D.
    """
    a, b = _levels(schedule, t, x, v)
    return b * x + a * v


def v_from_eps(
    schedule: Schedule, x: Float[Tensor, "B *L"], eps: Float[Tensor, "B *L"], t: Float[Tensor, "*T"]
) -> Float[Tensor, "B *L"]:
    """The v = alpha eps - sigma x_0 of a noise prediction; variance-preserving schedules only."""
    a, b = _levels(schedule, t, x, eps)
    return (eps - b * x) / a


def eps_from_flow(
    schedule: Schedule, x: Float[Tensor, "B *L"], u: Float[Tensor, "B *L"], t: Float[Tensor, "*T"]
) -> Float[Tensor, "B *L"]:
    """The noise in x if the network says u = eps - x_0; for schedules with alpha + sigma = 1, as Flow."""
    a, _ = _levels(schedule, t, x, u)
    return x + a * u
