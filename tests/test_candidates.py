"""Noise candidates: halving, and the views that are judged."""

from dataclasses import replace

import pytest
import torch
from closed_prior import ClosedPrior, H, PixelSubject, V, W, redness

from align3d.methods.candidates import Explore, clean, some, tiled
from align3d.methods.weighting import Weighting
from align3d.rng import Streams
from align3d.scenes.rings import Ring
from align3d.types import Look

B = 2
PROMPTS = ["a thing", "a blue thing"]


def streams(update=0, rows=B, first=0):
    return Streams.batch(0, update, first, rows)


def noised(explore, update=0):
    subject = PixelSubject(B, ClosedPrior())
    t, texts = torch.tensor([0.9, 0.6], dtype=torch.float64), (PROMPTS, [""] * B)
    look = Look(subject.adapter.z.detach(), Ring(views=V, size=H)(streams(update)))
    return subject, explore.noised(subject, look, t, texts, PROMPTS, streams(update))


def test_halving_is_the_walk_of_those_that_stay():
    """Each survivor's reward is what it would have without halving after as many steps; the best half stays."""
    explore, weighting = Explore(8, steps=3, guidance=2.0, halving=True), Weighting("best")
    subject, start = noised(explore)
    numbers, reward = explore.rewards(subject, redness, start, weighting, streams())
    assert numbers.shape == reward.shape == (2, B)
    alive = torch.arange(8)[:, None].expand(8, B)
    for steps, left in ((1, 4), (2, 2)):  # as spaced for three steps
        at = start
        for k in range(1, steps):
            at = explore.onward(subject, at, start.t * (3 - k) / 3)
        whole = explore.judged(subject, redness, at, clean(subject, at, explore.guidance), streams())
        alive = torch.stack([alive[:, i][whole[alive[:, i], i].argsort(descending=True)[:left]] for i in range(B)], 1)
    assert torch.equal(numbers, alive.sort(0).values)
    plain = replace(explore, halving=False).rewards(subject, redness, start, weighting, streams())[1]
    torch.testing.assert_close(reward, plain.gather(0, numbers))


@pytest.mark.parametrize(("num", "steps", "rows"), [(8, 1, 8), (8, 2, 8 + 4), (8, 3, 8 + 4 + 2), (8, 9, 8 + 4 + 2)])
def test_halving_costs_less_than_two_evaluations_a_candidate(num, steps, rows):
    explore = Explore(num, steps=steps, halving=True)
    subject, start = noised(explore)
    explore.rewards(subject, redness, start, Weighting("best"), streams())
    assert subject.prior.rows == 2 * B * rows


def test_the_worst_stay_too_where_they_count():
    reward = torch.arange(16.0).view(16, 1)[torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    for weighting, num, wanted in (
        (Weighting("best"), 3, {15, 14, 13}),
        (Weighting("min-max"), 8, {15, 14, 13, 12, 3, 2, 1, 0}),
        (Weighting("min-max", num_max=3, num_min=1), 6, {15, 14, 13, 12, 11, 0}),
        (Weighting("min-max", num_max=1, num_min=2), 4, {15, 14, 1, 0}),
        (Weighting("min-max", num_min=0), 4, {15, 14, 13, 12}),
        (Weighting("weighted"), 2, {15, 14}),
    ):
        kept = weighting.keep(reward, num)
        assert {int(r) for r in reward[kept[:, 0], 0]} == wanted
        assert torch.equal(kept.sort(0).values, kept)


def test_halving_never_leaves_too_few():
    explore, weighting = Explore(6, steps=9, halving=True), Weighting("min-max")
    subject, start = noised(explore)
    numbers, reward = explore.rewards(subject, redness, start, weighting, streams())
    assert len(numbers) == 4
    assert int((weighting(reward) != 0).sum(0).min()) == 4


def test_views_that_are_judged():
    """Two of three, the same for all candidates of a row, others in other updates, with their cameras."""
    explore, num = Explore(3, views=2), 3
    seen = []

    def score(scene, prompts, rng):
        seen.append(scene.rgb)
        return redness(scene, prompts, rng)

    chosen = set()
    for update in range(12):
        rng = streams(update)
        x0 = torch.arange(float(num * B * V)).view(num * B, V, 1, 1, 1).expand(-1, -1, 3, H, W)
        cameras = tiled(Ring(views=V, size=H)(rng), num)
        part, of_part = explore.glimpse(x0, cameras, rng)
        views = part[:, :, 0, 0, 0] - V * torch.arange(num * B)[:, None]
        assert part.shape == (num * B, 2, 3, H, W) and (views.diff(dim=1) > 0).all()
        assert torch.equal(views.view(num, B, 2), views.view(num, B, 2)[:1].expand(num, -1, -1))
        for i in range(num * B):
            assert torch.equal(of_part.c2w[i], cameras.c2w[i, views[i].long()])
        chosen |= {(i, *views[i].tolist()) for i in range(B)}
        alone, _ = explore.glimpse(x0[1::B], some(cameras, torch.arange(1, num * B, B)), streams(update, 1, first=1))
        assert torch.equal(alone, part[1::B])
    assert chosen == {(i, *pair) for i in range(B) for pair in ((0.0, 1.0), (0.0, 2.0), (1.0, 2.0))}
    subject, start = noised(explore)
    explore.rewards(subject, score, start, Weighting("best"), streams())
    assert seen[0].shape == (num * B, 2, 3, H, W)
    whole, none = explore.glimpse(x0, None, rng)[0], replace(explore, views=3).glimpse(x0, None, rng)
    assert whole.shape[1] == 2 and none[0] is x0 and none[1] is None


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="views and chunk 0 or more"):
        Explore(views=-1)
