"""Coefficients of noise candidates."""

import pytest
import torch

from align3d.methods.weighting import KINDS, Weighting

N, B = 5, 2
REWARD = torch.tensor([[0.1, 5.0], [0.4, 1.0], [0.3, 2.0], [0.2, 4.0], [0.0, 3.0]])


def test_best():
    assert Weighting("best")(REWARD).tolist() == [[0, 1], [1, 0], [0, 0], [0, 0], [0, 0]]
    two = Weighting("best", num_best=2)(REWARD)
    assert two.tolist() == [[0, 0.5], [0.5, 0], [0.5, 0], [0, 0.5], [0, 0]]
    assert torch.equal(Weighting("best", num_best=2, per_loss=True)(REWARD), two / 2)


def test_min_max_of_each_scene():
    c = Weighting("min-max")(REWARD)
    torch.testing.assert_close(c[:, 0], torch.tensor([-0.05, 0.45, 0.45, 0, -0.05]))
    torch.testing.assert_close(c[:, 1], torch.tensor([0.45, -0.05, -0.05, 0.45, 0]))
    reference = Weighting("min-max", per_loss=True)(REWARD)  # the factors of the published 2D code
    torch.testing.assert_close(reference[:, 0], torch.tensor([-0.0125, 0.1125, 0.1125, 0, -0.0125]))
    only = Weighting("min-max", num_min=0, lambda_max=1.0)(REWARD)
    torch.testing.assert_close(only, Weighting("best", num_best=2)(REWARD))


def test_weighted_is_a_softmax():
    raw = Weighting("weighted", zscore=False)(REWARD)
    torch.testing.assert_close(raw, torch.softmax(REWARD, 0))
    torch.testing.assert_close(Weighting("weighted", zscore=False, per_loss=True)(REWARD), raw / N)
    z = (REWARD - REWARD.mean(0)) / REWARD.std(0, correction=0)
    torch.testing.assert_close(Weighting("weighted", temperature=0.5)(REWARD), torch.softmax(2 * z, 0))
    scaled = Weighting("weighted")(1e-4 * REWARD + 7)
    torch.testing.assert_close(scaled, Weighting("weighted")(REWARD), rtol=1e-2, atol=0)
    same = Weighting("weighted")(torch.full((N, B), 0.3))
    torch.testing.assert_close(same, torch.full((N, B), 1 / N))


@pytest.mark.parametrize("kind", KINDS)
def test_one_candidate_counts_whatever_the_kind(kind):
    for per_loss in (False, True):
        assert Weighting(kind, per_loss=per_loss)(REWARD[:1]).tolist() == [[1, 1]]


@pytest.mark.parametrize("kind", ["best", "min-max", "weighted"])
@pytest.mark.parametrize("zscore", [False, True])
def test_huge_rewards_do_not_overflow(kind, zscore):
    huge = torch.tensor([[1000.0], [-1000.0], [1000.0], [-1000.0]])
    c = Weighting(kind, zscore=zscore)(huge)
    assert torch.isfinite(c).all() and float(c.sum()) == pytest.approx(0.8 if kind == "min-max" else 1.0)
    assert c[0] >= c[1]


@pytest.mark.parametrize("kind", ["best", "min-max", "weighted"])
def test_scenes_do_not_mix_and_nothing_has_a_gradient(kind):
    reward = REWARD.clone().requires_grad_()
    c = Weighting(kind)(reward)
    assert not c.requires_grad
    for i in range(B):
        assert torch.equal(Weighting(kind)(REWARD[:, i : i + 1])[:, 0], c[:, i])


def test_of_equal_candidates_the_first_counts():
    assert Weighting("best")(torch.ones(3, 1)).flatten().tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("weighting", "num", "said"),
    [
        (Weighting("min-max"), 3, "weighting min-max needs 4 candidates or more, or 1 for none, got 3"),
        (Weighting("best", num_best=4), 2, "weighting best needs 4 candidates"),
        (Weighting("none"), 2, "2 candidates need a weighting"),
        (Weighting("weighted"), 0, "got 0"),
    ],
)
def test_numbers_that_leave_no_choice_are_refused(weighting, num, said):
    with pytest.raises(ValueError, match=said):
        weighting.check(num)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_max": 0}, "num_best and num_max must be 1 or more"),
        ({"num_min": -1}, "num_min 0 or more"),
        ({"lambda_max": 1.5}, "lambdas must be 0 to 1, got 1.5"),
        ({"lambda_min": float("nan")}, "lambdas must be 0 to 1"),
        ({"lambda_max": 0.0, "lambda_min": 0.0}, "no candidate counts"),
        ({"temperature": 0.0}, "temperature must be"),
    ],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Weighting("min-max", **options)
