"""Sums of rewards: values, gradients, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch

from align3d.config import of_reward
from align3d.rewards.clip import ClipScore
from align3d.rewards.combined import Combined, Scale, Term, among_candidates, drawn
from align3d.rewards.jpeg import JPEGCompress
from align3d.rewards.running import Running
from align3d.rewards.score import call_reward
from align3d.rng import Streams
from align3d.scenes.cameras import orbit
from align3d.types import Views

B, V, H, W = 2, 3, 5, 7
PROMPTS = ["a red cup", "a blue cup"]


def cameras(num):
    azimuth = torch.tensor([0.0, 90.0, 200.0]).expand(num, -1)
    return orbit(azimuth, torch.zeros_like(azimuth), height=H, width=W)


def views(dtype=torch.float64, num=B) -> Views:
    rgb = torch.rand(num, V, 3, H, W, dtype=dtype, generator=torch.Generator().manual_seed(0))
    alpha = torch.rand(num, V, 1, H, W, dtype=dtype, generator=torch.Generator().manual_seed(1))
    return Views(cameras(num), rgb=rgb.requires_grad_(), alpha=alpha)


def red(views, prompts):
    return views.rgb[:, :, 0].square().mean((-2, -1))


def green(views, prompts):
    """One number for an object."""
    return (views.rgb[:, :, 1] * views.alpha[:, :, 0]).mean((-3, -2, -1))[:, None]


green.needs = {"rgb", "alpha"}


def streams(update=0, num=B, group=1, first=0):
    return Streams.batch(0, update, first, num, group)


def slow_sum(views, update=-1):
    """What the sum below is, written out."""
    r, g = red(views, PROMPTS), green(views, PROMPTS)
    share = 1 if update < 0 else min(1, (update + 1) / 4)
    return 2 * r.min(1).values - 0.5 * share * g[:, 0].clamp(0.2, 0.26)


SUM = Combined(
    {
        "red": Term(reward=red, weight=2.0, views="min"),
        "green": Term(reward=green, weight=-0.5, low=0.2, high=0.26, warmup=4),
    }
)


@pytest.mark.parametrize("update", [-1, 0, 2, 3, 50])
def test_it_is_the_weighted_sum_of_its_terms(update):
    seen = views()
    torch.testing.assert_close(SUM.within(streams(update))(seen, PROMPTS)[:, 0], slow_sum(seen, update))
    torch.testing.assert_close(SUM(seen, PROMPTS)[:, 0], slow_sum(seen))
    assert SUM(seen, PROMPTS).shape == (B, 1)
    assert SUM.needs == {"rgb", "alpha"} and SUM.differentiable and not SUM.scales and not SUM.whole_groups


@pytest.mark.parametrize("how", ["mean", "min", "max"])
def test_the_number_of_an_object_from_its_views(how):
    seen, each = views(), red(views(), PROMPTS)
    wanted = {"mean": each.mean(1), "min": each.min(1).values, "max": each.max(1).values}[how]
    torch.testing.assert_close(Combined({"red": Term(reward=red, views=how)})(seen, PROMPTS)[:, 0], wanted)


@pytest.mark.parametrize("normalise", ["none", "running", "candidates"])
def test_gradients_are_those_of_finite_differences(normalise):
    terms = {"red": Term(reward=red, views="max", normalise=normalise), "green": Term(reward=green, weight=0.3)}
    total, seen = Combined(terms), views()
    total.restore({"red/first_mean": 0.3, "red/first_std": 0.1, "red/mean": 0.2, "red/std": 0.05})
    rng = streams(group=2)
    (grad,) = torch.autograd.grad(total.within(rng)(seen, PROMPTS).sum(), seen.rgb)
    assert torch.isfinite(grad).all() and (grad.flatten(1).norm(dim=1) > 0).all()
    scale = 1.0
    if normalise == "candidates":  # the standard deviation within the group is a constant to the gradient
        scale = float(red(seen, PROMPTS).detach().max(1).values.std(correction=0))
    if normalise == "running":
        scale = 0.05
    plain = Combined({"red": Term(reward=red, views="max", weight=1 / scale), "green": terms["green"]})
    step = torch.randn(seen.rgb.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ends = [replace(seen, rgb=seen.rgb.detach() + h * step) for h in (1e-6, -1e-6)]
    up, down = (plain(end, PROMPTS).sum() for end in ends)
    assert float((grad * step).sum()) == pytest.approx(float(up - down) / 2e-6, rel=1e-6)


def test_a_subset_of_the_views_is_unbiased_and_of_its_own_for_each_object():
    num = 600
    seen = views(num=1)
    seen = replace(
        seen,
        rgb=seen.rgb.detach().expand(num, -1, -1, -1, -1).clone().requires_grad_(),
        cameras=cameras(num),
        alpha=None,
    )
    whole, part = (Combined({"red": Term(reward=red, subset=k)}) for k in (0, 2))
    prompts = ["a cup"] * num
    total, few = (one.within(streams(num=num))(seen, prompts) for one in (whole, part))
    assert len(few.unique()) == 3, "three pairs of three views"
    error = float(few.std()) / num**0.5
    assert float(few.mean()) == pytest.approx(float(total.mean()), abs=4 * error)
    grads = [torch.autograd.grad(one.sum(), seen.rgb, retain_graph=True)[0].mean(0) for one in (total, few)]
    torch.testing.assert_close(grads[1], grads[0], rtol=0.15, atol=0)
    again = part.within(streams(num=num // 2, first=num // 2))
    half = replace(seen, rgb=seen.rgb[num // 2 :], cameras=cameras(num // 2))
    assert torch.equal(again(half, prompts[num // 2 :]), few[num // 2 :]), "whatever batch the object is in"
    assert torch.equal(part(seen, prompts), total), "outside of training, all views count"


def test_drawn_views_keep_their_cameras():
    seen = views()
    some = drawn(seen, 2, streams(), "views")
    assert some.rgb.shape == (B, 2, 3, H, W) and some.depth is None
    for i in range(B):
        for j in range(2):
            (k,) = [k for k in range(V) if torch.equal(seen.rgb[i, k], some.rgb[i, j])]
            assert torch.equal(some.cameras.c2w[i, j], seen.cameras.c2w[i, k])
            assert torch.equal(some.alpha[i, j], seen.alpha[i, k])
    with pytest.raises(ValueError, match="a subset of 4 views needs as many, there are 3"):
        drawn(seen, 4, streams(), "views")


def test_candidates_are_compared_within_their_prompt():
    value = torch.tensor([1.0, 3.0, 10.0, 10.0, 5.0, 4.0], requires_grad=True)
    torch.testing.assert_close(among_candidates(value, 2), torch.tensor([-1.0, 1.0, 0.0, 0.0, 1.0, -1.0]))
    assert torch.equal(among_candidates(value[2:], 2), among_candidates(value, 2)[2:])
    for group in (1, 4):
        with pytest.raises(ValueError, match=f"no whole groups of {group}"):
            among_candidates(value, group)


def test_running_numbers_are_those_of_weighted_samples():
    """Against the definition, with weights that fall by 1 - 1 / span from update to update."""
    running, rng = Running(span=4.0), torch.Generator().manual_seed(0)
    batches = [5 + 1e-3 * torch.randn(n, generator=rng) for n in (6, 4, 4, 9)]
    for batch in batches:
        for part in batch.split(2):  # in whatever parts
            running.add(part)
        running.advance(running.seen())
    shares = [0.75**3, 0.25 * 0.75**2, 0.25 * 0.75, 0.25]
    each = torch.cat(
        [torch.full((len(b),), s / len(b), dtype=torch.float64) for s, b in zip(shares, batches, strict=True)]
    )
    x = torch.cat(batches).double()
    mean = float((each * x).sum())
    assert running.numbers["mean"] == pytest.approx(mean, abs=1e-12)
    assert running.numbers["std"] == pytest.approx(float((each * (x - mean) ** 2).sum()) ** 0.5, rel=1e-6)
    assert running.numbers["first_std"] == pytest.approx(float(batches[0].std(correction=0)), rel=1e-3)
    running.advance({})
    assert running.numbers["mean"] == pytest.approx(mean, abs=1e-12)


def test_outside_of_training_the_first_numbers_count():
    total, seen = Combined({"red": Term(reward=red, normalise="running")}), views()
    with pytest.raises(ValueError, match="reward red is normalised by what a run has seen, and there is no run"):
        total(seen, PROMPTS)
    total.restore({"red/first_mean": 0.3, "red/first_std": 0.1, "red/mean": 0.2, "red/std": 0.05})
    each = red(seen, PROMPTS).mean(1)
    torch.testing.assert_close(total(seen, PROMPTS)[:, 0], (each - 0.3) / 0.1)
    torch.testing.assert_close(total.within(streams())(seen, PROMPTS)[:, 0], (each - 0.2) / 0.05)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"low": 1.0, "high": 1.0}, r"low must be a number below high, got 1\.0 and 1\.0"),
        ({"high": math.nan}, "low must be a number below high"),
        ({"span": 0.5}, "span above 1"),
        ({"span": math.inf}, "span above 1 and finite"),
        ({"warmup": -1}, "must be 0 or more"),
    ],
)
def test_bad_scales_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Scale(**options)


@pytest.mark.parametrize("weight", [0.0, math.nan, math.inf])
def test_bad_weights_are_refused(weight):
    with pytest.raises(ValueError, match="a weight must be finite and not 0"):
        Term(reward=red, weight=weight)


def test_no_terms_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        Combined({})


def test_the_term_that_fails_is_named():
    def nan(views, prompts):
        return views.rgb.mean((-3, -2, -1)) * math.nan

    with pytest.raises(FloatingPointError, match="reward broken returned nan for 'a red cup', view 1"):
        Combined({"red": Term(reward=red), "broken": Term(reward=nan)})(views(), PROMPTS)


def test_its_terms_are_recorded():
    told = of_reward(Combined({"dnc": Term(reward=JPEGCompress(), weight=0.5)}), "mine")
    assert told["name"] == "mine" and told["terms"]["dnc"]["weight"] == 0.5
    assert told["terms"]["dnc"]["reward"]["name"] == "jpeg-compress"


def test_a_term_is_no_sum():
    with pytest.raises(ValueError, match="a term of a sum cannot be a Combined"):
        Term(reward=Combined({"red": Term(reward=red)}))
    with pytest.raises(ValueError, match="names of terms have no slash"):
        Combined({"a/b": Term(reward=red)})


def test_our_own_errors_stay_what_they_are():
    """A mistake of the package inside a sum is no mistake of the user's."""
    total = Combined({"clip": Term(reward=ClipScore())})
    for score in (total, total.within(streams())):
        with pytest.raises(FileNotFoundError, match="reward clip needs the folder"):
            call_reward(score, "mix", views(torch.float32), PROMPTS)

    def broken(views, prompts):
        return views.nothing

    with pytest.raises(
        ValueError, match=r"^reward broken failed: AttributeError: .* \(test_rewards_combined.py:\d+\)$"
    ):
        call_reward(Combined({"broken": Term(reward=broken)}).within(streams()), "mix", views(), PROMPTS)


def test_estimates_at_noisy_states_do_not_count():
    total, seen = Combined({"red": Term(reward=red)}), views()
    total.within(replace(streams(), counted=(False, True)))(seen, PROMPTS)
    assert total.seen()["red/count"] == 1 and total.seen()["red/sum"] == pytest.approx(
        float(red(seen, PROMPTS)[1].mean())
    )
    total.within(replace(streams(), counted=(False, False)))(seen, PROMPTS)
    assert total.seen()["red/count"] == 1


def test_the_deviation_that_divides_does_not_vanish():
    running = Running(span=1.01)
    running.add(torch.tensor([0.0, 2.0]))
    running.advance(running.seen())
    for _ in range(50):
        running.add(torch.tensor([1.0]))
        running.advance(running.seen())
    assert running.numbers["std"] < 1e-6
    assert float(running.scaled(torch.tensor([2.0]))) == pytest.approx(20.0, rel=1e-3)
