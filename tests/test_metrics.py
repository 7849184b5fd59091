"""Distances between sets of features, against closed forms and a second way to compute them."""

import math

import pytest
import torch

from align3d.intervals import jackknife_error
from align3d.metrics import diversity, frechet_distance, leave_out
from align3d.rng import stream


def normal(*shape, key="x"):
    return torch.randn(shape, generator=stream("metrics", key), dtype=torch.float64)


@pytest.mark.parametrize(("n", "m"), [(40, 50), (5, 7), (40, 5)])
def test_it_is_the_formula_with_a_matrix_square_root(n, m):
    import numpy as np
    from scipy.linalg import sqrtm

    a, b = normal(n, 12, key="a"), normal(m, 12, key="b") @ normal(12, 12, key="mix") + 0.3
    root = np.real(sqrtm(a.T.cov().numpy() @ b.T.cov().numpy()))
    wanted = float((a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace()) - 2 * root.trace()
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-4 if min(n, m) < 12 else 1e-9)


def test_shift_and_scale_have_closed_forms():
    a = normal(200, 6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 0.5) == pytest.approx(6 * 0.25)
    trace = float(a.T.cov().trace())
    centred = a - a.mean(0)
    assert frechet_distance(centred, 3 * centred) == pytest.approx((3 - 1) ** 2 * trace)


def test_two_sets_of_one_kind_differ_less_the_larger_they_are():
    small, large = (frechet_distance(normal(n, 8, key=f"p{n}"), normal(n, 8, key=f"q{n}")) for n in (20, 2000))
    assert small > 10 * large > 0


def test_the_jackknife_error_is_that_of_repeated_draws():
    draws = [(normal(12, 20, 4, key=f"a{i}"), 0.5 + normal(12, 20, 4, key=f"b{i}")) for i in range(60)]
    values = torch.tensor([frechet_distance(a.flatten(0, 1), b.flatten(0, 1)) for a, b in draws])
    told = sum(jackknife_error(leave_out(a, b)) for a, b in draws[:10]) / 10
    assert told == pytest.approx(float(values.std()), rel=0.35)
    assert jackknife_error(leave_out(*(x[:1] for x in draws[0]))) is None


def test_diversity_is_the_mean_cosine_distance_of_the_seeds():
    angles = torch.tensor([0.0, math.pi / 3, math.pi / 2])
    one = torch.stack([angles.cos(), angles.sin()], -1)[:, None].expand(3, 2, 2) * 7  # S V d
    same = torch.ones(3, 2, 2)
    wanted = 1 - (math.cos(math.pi / 3) + 0 + math.cos(math.pi / 6)) / 3
    torch.testing.assert_close(diversity(torch.stack([one, same])), torch.tensor([wanted, 0.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="two samples"):
        diversity(same[None, :1])


def test_bad_features_are_refused():
    with pytest.raises(ValueError, match="second has 1"):
        frechet_distance(normal(3, 2), normal(1, 2))
    with pytest.raises(ValueError, match="first set is not finite"):
        frechet_distance(torch.full((3, 2), math.nan), normal(3, 2))
