"""Intervals of means and of statistics that are known without each part of the data."""

from __future__ import annotations

import math
from statistics import fmean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


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
