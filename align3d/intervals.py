"""Intervals of means and of statistics that are known without each part of the data."""

from __future__ import annotations

import math
from statistics import NormalDist, fmean, stdev
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    Kind = Literal["percentile", "bca"]

MANY = 10  # values from which on a bootstrap over them says something
RESAMPLES = 4000  # of the bootstrap
INTERVAL = 0.95  # probability that intervals are made for


def interval_of_mean(
    values: Sequence[float], seed: int = 0, kind: Kind = "percentile"
) -> tuple[float, float | None, float | None, float | None]:
    """Mean, its standard error, and its 95 % interval; the latter three None for one value.

    The interval is the bootstrap's; with fewer than ten values, of which that sees too little, it is Student's t.
    """
    found = mean_interval(values)
    if len(values) < MANY:
        return found
    import torch

    return (*found[:2], *bootstrap(torch.tensor(values, dtype=torch.float64), seed, kind))


def bootstrap(values: Float[Tensor, "n"], seed: int = 0, kind: Kind = "percentile") -> tuple[float, float]:
    """The 95 % interval of a mean, from means of values that are drawn again with replacement.

    Args:
        values: Independent of each other, two or more.
        seed: Of the draws.
        kind: percentile: the ends of the middle 95 % of the means; bca: corrected for their bias and for a skew of the
            values, of which the former leaves out too much on one side.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, 13.3 and 14.3.
    """
    import torch

    from align3d.rng import stream

    d, n = values.double().cpu(), len(values)
    generator = stream(seed, "bootstrap")
    means = torch.cat([d[torch.randint(n, (100, n), generator=generator)].mean(1) for _ in range(RESAMPLES // 100)])
    ends = ((1 - INTERVAL) / 2, (1 + INTERVAL) / 2)
    if kind == "bca":
        ends = tuple(_corrected(d, means, end) for end in ends)
    low, high = means.quantile(torch.tensor(ends, dtype=d.dtype)).tolist()
    return low, high


def _corrected(values: Float[Tensor, "n"], means: Float[Tensor, "m"], end: float) -> float:
    """Which quantile of the resampled means stands for one of the mean itself."""
    normal, mean = NormalDist(), values.mean()
    below = float((means < mean).double().mean() + (means == mean).double().mean() / 2)
    off = mean - values  # a mean without one value is off by a part of that
    spread = float(off.square().sum())
    if not 0 < below < 1 or spread == 0:
        return end
    bias, skew = normal.inv_cdf(below), -float((off**3).sum()) / (6 * spread**1.5)
    at = bias + normal.inv_cdf(end)
    return normal.cdf(bias + at / (1 - skew * at))


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None, float | None]:
    """Mean, its standard error, and the 95 % t-interval; the latter three None for one value."""
    mean = fmean(values)
    if len(values) < 2:
        return mean, None, None, None
    error = stdev(values) / math.sqrt(len(values))
    half = t_quantile(len(values) - 1) * error
    return mean, error, mean - half, mean + half


def jackknife_error(without: Sequence[float]) -> float | None:
    """Standard error of a statistic from its values without each block of the data; None with fewer than two blocks."""
    G = len(without)
    if G < 2:
        return None
    mean = fmean(without)
    return math.sqrt((G - 1) / G * sum((value - mean) ** 2 for value in without))


def jackknife_interval(value: float, without: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % t-interval of a statistic from its values without each block; None with fewer than two blocks."""
    error = jackknife_error(without)
    if error is None:
        return None
    half = t_quantile(len(without) - 1) * error
    return value - half, value + half


def t_quantile(df: int, level: float = 0.95) -> float:
    """Half the width of a central interval of Student's t: t with P(|T| < t) = level.

    Args:
        df: Degrees of freedom, 1 or more.
        level: In (0, 1).

    Source: the finite series of Abramowitz & Stegun 26.7.3 and 26.7.4, by bisection over the angle atan(t / sqrt(df)).
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(df, middle) < level else (low, middle)
    return math.sqrt(df) * math.tan((low + high) / 2)


def _t_within(df: int, angle: float) -> float:
    """P(|T| < sqrt(df) tan(angle))."""
    odd, c2 = df % 2, math.cos(angle) ** 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(2 if odd else 1, df, 2):  # k is the numerator of the factor that makes the next term
        total += term
        term *= c2 * k / (k + 1)
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
