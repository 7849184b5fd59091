"""Gaussians that become more and fewer: what a change keeps, row by row."""

from dataclasses import replace

import pytest
import torch

from align3d.rng import Streams
from align3d.scenes.cameras import orbit
from align3d.scenes.density import DENSITIES
from align3d.scenes.density.base import Density
from align3d.scenes.density.default import CloneSplit
from align3d.scenes.density.mcmc import MCMC, divided
from align3d.scenes.density.rows import NEW, Rows, cloned, shared, split
from align3d.scenes.raster.projection import rotation
from align3d.scenes.splats import Splats, ball

N = 40
NOW = Streams.batch(0, 24, 0, 0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(num=N, seed=0, pull=None):
    """Gaussians of all sizes, directions and opacities, some of which the views have not seen."""
    g = seeded(seed)
    values = {
        "means": 0.3 * torch.randn(num, 3, generator=g),
        "quats": torch.randn(num, 4, generator=g),
        "log_scales": torch.randn(num, 3, generator=g) * 0.7 - 3.5,
        "logit_opacities": 2 * torch.randn(num, generator=g),
        "logit_colors": torch.randn(num, 3, generator=g),
    }
    if pull is None:
        pull = torch.rand(num, generator=g)
        pull[::4] = 0
    return Rows.of(values, pull)


def picture(made, size=48):
    """A scene of these Gaussians, from three sides."""
    scene = Splats(ball(1, generator=seeded()))
    for name, value in made.values.items():
        getattr(scene, name).data = value
    cameras = orbit(torch.tensor([[0.0, 100.0, 220.0]]), torch.full((1, 3), 15.0), height=size, width=size + 8)
    with torch.no_grad():
        return scene.scene().render(cameras, want=("rgb", "alpha")).rgb


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def doubled_as_they_are(made):
    return made.with_new(made.values)


def test_a_clone_and_its_original_look_like_the_one():
    before = rows()
    after = cloned(before, torch.ones(N, dtype=torch.bool))
    assert len(after) == 2 * N and torch.equal(after.source[:N], torch.arange(N)) and (after.source[N:] == NEW).all()
    now, plain, twice = (picture(x) for x in (before, doubled_as_they_are(before), after))
    off, wrong = float((twice - now).abs().mean()), float((plain - now).abs().mean())
    assert off < 0.008 and off < 0.15 * wrong, (off, wrong)
    few = torch.arange(N) % 3 == 0
    some = cloned(before, few)
    assert len(some) == N + int(few.sum())
    for name, value in before.values.items():
        assert torch.equal(some.values[name][:N][~few], value[~few]), "the others keep their bits"
        assert torch.equal(some.values[name][N:], some.values[name][:N][few])


@pytest.mark.parametrize("num", [2, 3, 7, 51])
def test_a_share_of_light_is_that_of_the_paper(num):
    """Against the double sum of 3DGS-MCMC, eq. 9, and what it is for: the light let through in the middle stays."""
    from math import comb, sqrt

    opacities = torch.tensor([0.02, 0.5, 0.97])
    part, scales = shared(opacities, torch.ones(3, 3), torch.full((3,), num))
    torch.testing.assert_close((1 - part.double()) ** num, 1 - opacities.double(), rtol=1e-4, atol=1e-6)
    for o, p, s in zip(opacities.tolist(), part.double().tolist(), scales[:, 0].tolist(), strict=True):
        terms = [
            comb(i - 1, k) * (-1) ** k / sqrt(k + 1) * p ** (k + 1) for i in range(1, num + 1) for k in range(0, i)
        ]
        assert s == pytest.approx(o / sum(terms), rel=1e-3)


def test_halves_cover_what_the_one_covered():
    """Mean and expected covariance stay, whatever the rotation; opacities, colours and directions are the same."""
    num = 40_000
    one = {name: value[:1] for name, value in rows(1, seed=3).values.items()}
    many = Rows.of({name: value.expand(num, *value.shape[1:]) for name, value in one.items()}, torch.ones(num))
    after = split(many, torch.ones(num, dtype=torch.bool), 1.6, seeded(5))
    assert len(after) == 2 * num and (after.source == NEW).all()
    means, R = after.values["means"].double(), rotation(one["quats"].double(), normalize=True)[0]
    torch.testing.assert_close(means[:num] + means[num:], 2 * one["means"].double().expand(num, 3), rtol=0, atol=1e-5)
    before = R @ torch.diag(one["log_scales"][0].double().exp() ** 2) @ R.T
    own = before / 1.6**2
    torch.testing.assert_close(torch.cov(means.T) + own, before, rtol=0, atol=0.02 * float(before.abs().max()))
    torch.testing.assert_close(after.scales * 1.6, many.scales.repeat(2, 1))
    for name in ("quats", "logit_opacities", "logit_colors"):
        assert torch.equal(after.values[name], many.values[name].repeat(2, *[1] * (many.values[name].ndim - 1)))


def test_a_split_leaves_the_others_alone():
    before, which = rows(), torch.arange(N) % 5 == 0
    after = split(before, which, 1.6, seeded())
    assert len(after) == N + int(which.sum())
    kept = int((~which).sum())
    assert torch.equal(after.source[:kept], (~which).nonzero()[:, 0]) and (after.source[kept:] == NEW).all()
    for name, value in before.values.items():
        assert torch.equal(after.values[name][:kept], value[~which])
    assert split(before, torch.zeros(N, dtype=torch.bool), 1.6, seeded()) is before


def test_what_no_view_has_seen_is_not_doubled():
    density, before = CloneSplit(grow=0.5, faint=0.0, large=0.0).sized(N), rows()
    after = density.refine(before, 25, NOW, 1e-3)
    blind = before.pull == 0
    wanted = before.pull > 0.5 * before.pull[~blind].mean()
    assert int(wanted.sum()) > 10 and len(after) == N + int(wanted.sum())
    for i in blind.nonzero()[:, 0].tolist():
        assert int((after.source == i).sum()) == 1
        for name, value in before.values.items():
            found = after.values[name][after.source == i]
            assert torch.equal(found[0], value[i])
            alike = (after.values[name] == value[i]).reshape(len(after), -1).all(1)
            assert int(alike.sum()) == 1, "no second one of it"
    nothing = density.refine(rows(pull=torch.zeros(N)), 25, NOW, 1e-3)
    assert len(nothing) == N


def test_small_ones_are_cloned_and_large_ones_split():
    before = rows(pull=torch.ones(N))
    density = CloneSplit(grow=0.5, faint=0.0, large=0.0, size=float(before.scales.amax(1).median())).sized(N)
    after = density.refine(before, 25, NOW, 1e-3)
    small = before.scales.amax(1) <= density.size
    assert 5 < int(small.sum()) < N - 5 and len(after) == 2 * N
    assert set(after.source.tolist()) == {NEW, *small.nonzero()[:, 0].tolist()}, "split ones go on as new ones"
    places = after.values["means"]
    for i in range(N):
        at = (places == before.values["means"][i]).all(1)
        assert int(at.sum()) == (2 if small[i] else 0)


def test_faint_and_large_ones_go():
    before = rows()
    density = CloneSplit(grow=1e6, faint=0.2, large=0.1).sized(N)
    sound = (before.opacities >= 0.2) & (before.scales.amax(1) <= 0.1)
    after = density.refine(before, 25, NOW, 1e-3)
    assert 5 < int(sound.sum()) < N - 5 and torch.equal(after.source, sound.nonzero()[:, 0])
    dead = rows()
    dead.values["logit_opacities"].sub_(50)
    assert len(density.refine(dead, 25, NOW, 1e-3)) == 1, "one stays, whatever it is"


def test_opacities_are_cut_now_and_then():
    density, before = CloneSplit(reset=10, faint=0.05, last=20).sized(N), rows()
    after = density.refine(before, 10, NOW, 1e-3)
    assert after.forget == ("logit_opacities",) and torch.equal(after.source, before.source)
    torch.testing.assert_close(after.opacities, before.opacities.clamp(max=0.1))
    assert density.refine(before, 11, NOW, 1e-3) is before
    assert density.refine(before, 20, NOW, 1e-3).forget and density.refine(before, 30, NOW, 1e-3) is before


def test_what_is_doubled_is_not_dropped_at_once():
    """Clones share their opacity: where that would leave them below `faint`, there are none."""
    before, faint = rows(2000), 0.3
    before.values["log_scales"].fill_(-4.0)
    pulled = replace(before, pull=torch.ones(2000))
    after = CloneSplit(grow=0.5, faint=faint, size=1.0).sized(2000).refine(pulled, 25, NOW, 1e-3)
    bright, sound = before.opacities >= 1 - (1 - faint) ** 2, before.opacities >= faint
    assert int((sound & ~bright).sum()) > 100, "some are neither dropped nor doubled"
    assert torch.equal(after.source[after.source != NEW], sound.nonzero()[:, 0])
    assert int((after.source == NEW).sum()) == pytest.approx(int(bright.sum()), abs=3)
    assert after.opacities.min() >= faint
    halves = CloneSplit(grow=0.5, faint=faint, size=1e-6).sized(2000).refine(pulled, 25, NOW, 1e-3)
    assert len(halves) == pytest.approx(2 * int(sound.sum()), abs=6), "they keep their opacity"
    one = CloneSplit(grow=0.5, faint=faint, size=1.0, most=2001).refine(pulled, 25, NOW, 1e-3)
    assert int((one.source == NEW).sum()) == 1, "faint ones take no room"


@pytest.mark.parametrize(("num", "more", "found"), [(10, 1.05, 11), (1, 1.01, 2), (40, 1.05, 42), (10, 1.0, 10)])
def test_growth_of_less_than_one_is_one(num, more, found):
    before = rows(num)
    before.values["logit_opacities"].fill_(1.0)
    assert len(MCMC(more=more, noise=0.0).sized(num).refine(before, 25, NOW, 1e-3)) == found


@pytest.mark.parametrize("most", [N, N + 3, 1000])
def test_the_limit_holds_and_the_most_pulled_come_first(most):
    before = rows()
    after = CloneSplit(grow=0.2, faint=0.0, large=0.0, size=100.0, most=most).refine(before, 25, NOW, 1e-3)
    wanted = int((before.pull > 0.2 * before.pull[before.pull > 0].mean()).sum())
    assert len(after) == min(most, N + wanted)
    new = len(after) - N
    first = before.pull.argsort(descending=True)[:new]
    assert {tuple(x) for x in after.values["means"][N:].tolist()} == {
        tuple(x) for x in before.values["means"][first].tolist()
    }
    grown = MCMC(most=most, more=5.0).refine(before, 25, NOW, 1e-3)
    assert N < len(grown) <= most or len(grown) == N == most


def test_dead_ones_move_to_live_ones_and_the_picture_stays():
    before, density = rows(2000, seed=2), MCMC(faint=0.05, more=1.0, noise=0.0).sized(2000)
    dead = before.opacities <= 0.05
    after = density.refine(before, 25, NOW, 1e-3)
    assert len(after) == 2000 and 50 < int(dead.sum()) < 1000
    moved = dead & (after.source == NEW)
    assert int(moved.sum()) > 0.6 * int(dead.sum()), "faint hosts take in none"
    live = {tuple(x): i for i, x in enumerate(before.values["means"][~dead].tolist())}
    hosts = [live[tuple(x)] for x in after.values["means"][moved].tolist()]
    place = (~dead).nonzero()[:, 0][torch.tensor(hosts)]
    assert (after.source[place] == NEW).all(), "they share their light, and begin anew"
    assert before.opacities[place].mean() > before.opacities[~dead].mean(), "more come to the opaque ones"
    others = torch.ones(2000, dtype=torch.bool).index_fill(0, place, False) & ~moved
    assert torch.equal(after.source[others], others.nonzero()[:, 0])
    for name, value in before.values.items():
        assert torch.equal(after.values[name][others], value[others])
    assert (picture(after) - picture(before)).abs().mean() < 0.02


def test_scenes_that_fade_are_not_divided_away():
    """Nearly all are dead, again and again: those that live take in no more than they have light for."""
    density = MCMC(faint=0.05, noise=0.0).sized(200)
    now = rows(200)
    now.values["logit_opacities"] = torch.where(torch.arange(200) < 6, 2.0, -6.0)
    for _ in range(10):
        now = density.refine(now, 25, NOW, 1e-3)
        now = Rows.of(now.values)
    live = now.opacities > 0.05
    assert int(live.sum()) > 30 and float(now.opacities[live].min()) > 0.099
    left = (1 - now.opacities[live].double()).log().sum()
    assert float(left) == pytest.approx(6 * float(torch.log(1 - torch.sigmoid(torch.tensor(2.0)))), rel=0.01)


def test_hosts_share_their_light():
    before = rows()
    after = divided(before, torch.tensor([3, 3, 7]))
    torch.testing.assert_close((1 - after.opacities[3]) ** 3, 1 - before.opacities[3])
    torch.testing.assert_close((1 - after.opacities[7]) ** 2, 1 - before.opacities[7])
    assert (after.source == NEW).nonzero()[:, 0].tolist() == [3, 7]


def test_faint_ones_are_shaken_along_their_own_axes():
    num = 20_000
    one = {name: value[:1] for name, value in rows(1, seed=3).values.items()}
    one["logit_opacities"] = torch.tensor([-6.0])
    many = Rows.of({name: value.expand(num, *value.shape[1:]).clone() for name, value in one.items()})
    many.values["logit_opacities"][: num // 2] = 3.0
    after = MCMC(noise=100.0, first=10**6).refine(many, 1, NOW, 0.01)
    assert after.source is many.source
    away = (after.values["means"] - many.values["means"]).double()
    assert float(away[: num // 2].abs().max()) < 1e-12
    R = rotation(one["quats"].double(), normalize=True)[0]
    wanted = one["log_scales"][0].double().exp() ** 2 * torch.sigmoid(torch.tensor(-100 * (0.00247 - 0.01)))
    torch.testing.assert_close((away[num // 2 :] @ R).std(0), wanted.double(), rtol=0.03, atol=0)


@pytest.mark.parametrize("name", DENSITIES)
def test_same_stream_same_bits(name):
    from align3d.registry import load

    density = load(DENSITIES, name)().sized(N)
    first, second = (density.refine(rows(), 25, NOW, 1e-3) for _ in range(2))
    assert torch.equal(first.source, second.source) and equal(first.values, second.values)
    before = rows()
    kept = {name: value.clone() for name, value in before.values.items()}
    density.refine(before, 25, NOW, 1e-3)
    assert equal(before.values, kept), "what came in is as it was"
    if density.changes:
        assert (
            type(density)().due(50) and not replace(density, last=40).due(50) and not replace(density, first=60).due(50)
        )
    else:
        before = rows()
        assert type(density) is Density and density.refine(before, 25, NOW, 1e-3) is before


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (CloneSplit, {"every": 0}, "every must be 1 or more"),
        (CloneSplit, {"first": -1}, "first and last 0 or more"),
        (CloneSplit, {"most": -1}, "most must be 0 to 16777216 Gaussians, got -1"),
        (MCMC, {"most": 1 << 25}, "most must be 0 to 16777216 Gaussians, got 33554432"),
        (CloneSplit, {"grow": float("nan")}, "grow must be 0 to 1e.06, got nan"),
        (CloneSplit, {"shrink": 1.0}, "shrink must be 1.01 to 100, got 1.0"),
        (CloneSplit, {"faint": 0.7}, "faint must be 0 to 0.5, got 0.7"),
        (CloneSplit, {"reset": 10, "last": 20, "faint": 0.0}, "wants a `faint` above 0 and below 0.5; got 10 and 0.0"),
        (CloneSplit, {"reset": 10, "last": 20, "faint": 0.5}, "wants a `faint` above 0 and below 0.5; got 10 and 0.5"),
        (CloneSplit, {"reset": 10}, "scene.density.reset 10 wants a `last`"),
        (MCMC, {"more": 0.9}, "more must be 1 to 10, got 0.9"),
        (MCMC, {"noise": -1.0}, "noise must be 0 to 1e.09, got -1.0"),
    ],
)
def test_nonsense_is_refused(kind, options, said):
    with pytest.raises(ValueError, match=said):
        kind(**options)


def test_more_than_allowed_is_refused():
    with pytest.raises(ValueError, match=r"begins with 64 Gaussians, scene\.density\.most allows 63; raise it"):
        Splats(ball(64, generator=seeded()), MCMC(most=63))
    assert [MCMC(most=most).sized(64).most for most in (0, 64, 70)] == [256, 64, 70]
    assert [MCMC().sized(num).most for num in (1 << 22, 1 << 23, 1 << 24)] == [1 << 24] * 3
