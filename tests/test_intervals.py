"""Intervals cover what they say they cover, on numbers whose truth is known."""

import math

import pytest
import torch

from align3d.evaluate import change
from align3d.intervals import MANY, bootstrap, interval_of_mean, mean_interval

TRIES = 300


def draws(kind: str, n: int, seed: int) -> torch.Tensor:
    """n numbers of mean 0."""
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x if kind == "normal" else x.exp() - math.exp(0.5)


def covered(kind: str, method: str, n: int = 40) -> tuple[float, float, float]:
    """How often the mean is inside, below and above the interval."""
    ends = [bootstrap(draws(kind, n, seed), seed, method) for seed in range(TRIES)]
    below, above = (sum(test) / TRIES for test in ([low > 0 for low, _ in ends], [high < 0 for _, high in ends]))
    return 1 - below - above, below, above


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_coverage(method):
    inside, below, above = covered("normal", method)
    assert 0.915 <= inside <= 0.975, "of 0.95, two and a half standard errors of 300 tries and the bootstrap's own loss"
    assert max(below, above) < 0.055


def test_skew_is_corrected():
    """Of skewed numbers, the percentile interval misses the mean on one side; BCa less so."""
    plain, corrected = covered("skewed", "percentile"), covered("skewed", "bca")
    assert corrected[0] >= plain[0] and corrected[2] < plain[2] - 0.01


def test_bca_is_known():
    """Against scipy.stats.bootstrap of 20,000 resamples, method BCa."""
    x = draws("skewed", 40, 0) + math.exp(0.5)
    import scipy.stats

    for method, theirs in (("percentile", "percentile"), ("bca", "BCa")):
        known = scipy.stats.bootstrap(
            (x.numpy(),), lambda v, axis: v.mean(axis), n_resamples=20000, method=theirs, rng=1
        )
        low, high = bootstrap(x, 0, method)
        width = known.confidence_interval.high - known.confidence_interval.low
        assert low == pytest.approx(known.confidence_interval.low, abs=0.04 * width)
        assert high == pytest.approx(known.confidence_interval.high, abs=0.05 * width)


def test_seed_decides():
    x = draws("normal", 20, 3)
    assert bootstrap(x, 1) == bootstrap(x, 1) != bootstrap(x, 2)


def test_numbers_that_are_all_the_same():
    assert bootstrap(torch.full((12,), 2.5), 0, "bca") == (2.5, 2.5)


def test_few_are_student():
    few, many = [float(x) for x in draws("normal", MANY - 1, 0)], [float(x) for x in draws("normal", MANY, 0)]
    assert interval_of_mean(few) == mean_interval(few)
    assert interval_of_mean(many)[2:] == bootstrap(torch.tensor(many, dtype=torch.float64))
    assert interval_of_mean([3.0]) == (3.0, None, None, None)


def test_pairs_are_narrower():
    """Prompts differ by much, methods by little: compared by prompt it shows, otherwise not."""
    hard = 10 * draws("normal", 30, 5)
    first, second = hard + 0.3 * draws("normal", 30, 6), hard + 0.3 * draws("normal", 30, 7) + 0.5
    paired = change("x", first, second)
    assert paired.low > 0
    unpaired = math.hypot(*(b - a for a, b in (bootstrap(first), bootstrap(second))))
    assert paired.high - paired.low < 0.1 * unpaired
    assert change("x", first, second, kind="bca") != paired
