"""Gaussians that are optimised under a prior whose answers are known, and the cameras around them."""

import json
from dataclasses import replace

import pytest
import torch
from closed_prior import SOLID, EllipsoidPrior

from align3d.loop import Loop, fit
from align3d.methods.candidates import Explore
from align3d.methods.sds import SDS
from align3d.methods.weighting import Weighting
from align3d.rewards.score import Scorer
from align3d.rng import Streams
from align3d.scenes.rings import Ring
from align3d.scenes.splats import Splats, ball
from align3d.subjects import Distilled, Shown
from align3d.types import Prior, Subject

RING = Ring(views=3, size=12)
LOOP = Loop(updates=60, batch_size=2, learning_rate=0.01, betas=(0.9, 0.99), eps=1e-15, warmup=0, max_grad_norm=0.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def subject(num=256):
    prior = EllipsoidPrior(size=RING.size, views=RING.views)
    return Distilled(Splats(ball(num, generator=seeded())), prior, RING)


def greenness(views, prompts):
    red, green, blue = views.rgb.unbind(2)
    return (green - 0.5 * (red + blue)).mean((-2, -1))


def test_it_is_a_subject_with_a_prior():
    one = subject()
    assert isinstance(one, Subject) and isinstance(one.prior, Prior)


@pytest.mark.parametrize("name", ["red", "blue"])
def test_gaussians_take_the_colour_that_the_text_says(name):
    one = subject()
    fit(
        one, SDS(guidance=1.0, t_max=(0.98, 0.3), anneal=40), lambda *_: None, [f"a {name} thing"], LOOP, progress=False
    )
    views = one.scene().render(Ring(views=4, size=24)(Streams.batch(5, 0, 0, 1)), want=("rgb", "alpha"))
    inside = views.alpha[0, :, 0] > 0.9
    assert 0.05 < float(inside.float().mean()) < 0.6
    colour = views.rgb[0].movedim(1, -1)[inside].mean(0)
    far = {other: float((colour - torch.tensor(solid)).norm()) for other, solid in SOLID.items()}
    assert min(far, key=far.get) == name and far[name] < 0.5


def test_every_parameter_and_every_row_has_a_gradient():
    one = subject()
    look = one.look(Streams.batch(0, 0, 0, 2))
    assert look.latents.shape == (2, 3, 3, 12, 12) and look.cameras.c2w.shape == (2, 3, 4, 4)
    for i in range(2):
        grads = torch.autograd.grad(look.latents[i].square().sum(), list(one.adapter.parameters()), retain_graph=True)
        assert all(torch.isfinite(grad).all() and grad.abs().max() > 0 for grad in grads)


def test_a_scene_moves_only_where_it_is_seen():
    start = ball(64, generator=seeded())
    behind = replace(start, means=start.means + torch.tensor([0.0, 0.0, 50.0]))  # behind all cameras, or far away
    both = replace(
        start,
        **{
            name: torch.cat([getattr(start, name), getattr(behind, name)], 1)
            for name in ("means", "quats", "scales", "opacities", "colors")
        },
    )
    front = replace(RING, turn=0.0, views=1, elevation=(0.0, 0.0))
    one = Distilled(Splats(both), EllipsoidPrior(size=12, views=1), front)
    one.look(Streams.batch(0, 0, 0, 1)).latents.square().sum().backward()
    assert (one.trained.means.grad[:64].norm(dim=1) > 0).any()
    assert (one.trained.means.grad[64:] == 0).all() and (one.trained.logit_colors.grad[64:] == 0).all()


def test_splats_are_what_they_were_made_from():
    start = ball(32, generator=seeded(3))
    for rows in (1, 3):
        scene = Splats(start)(rows)
        assert len(scene) == rows
        for mine, other in zip(scene.tensors, start.tensors, strict=True):
            torch.testing.assert_close(mine[-1], other[0], rtol=1e-4, atol=1e-5)


def test_opaque_and_black_gaussians_stay_finite():
    start = ball(4, generator=seeded())
    hard = replace(
        start, opacities=torch.tensor([[0.0, 1.0, 1.0, 0.5]]), colors=torch.zeros(1, 4, 3), scales=0 * start.scales
    )
    scene = Splats(hard)
    sum(x.sum() for x in scene(1).tensors).backward()
    assert all(torch.isfinite(p).all() and torch.isfinite(p.grad).all() for p in scene.parameters())


def test_learning_rates_are_those_of_the_kind():
    from align3d.trainer import Trainer

    one = subject()
    run = Trainer.start(one, SDS(), Scorer(greenness, RING), ["a thing"], replace(LOOP, warmup=2))
    run.learn(0)
    each = sorted(group["lr"] for group in run.state.optimizer.param_groups)
    assert each == pytest.approx([5e-4, 2.5e-3, 2.5e-3, 5e-3, 2.5e-2]), "half of them in the first of two updates"
    one.groups = lambda: {"nothing": {"lr": 1.0}}
    with pytest.raises(ValueError, match="options for nothing, and nothing that is called"):
        Trainer.start(one, SDS(), Scorer(greenness, RING), ["a thing"], LOOP)


def test_candidates_are_judged_by_a_reward_of_pictures():
    method = SDS(guidance=2.0, weighting=Weighting("best"), explore=Explore(4, steps=2))
    rows = fit(subject(), method, Scorer(greenness, RING), ["a thing"], replace(LOOP, updates=2), progress=False)
    assert rows[-1]["reward_best"] >= rows[-1]["reward"] and rows[-1]["reward_chosen"] == rows[-1]["reward_best"]


def test_every_candidate_is_logged():
    """Those that dropped out have no reward and do not count."""
    for options in ({}, {"halving": True, "steps": 2}):
        method = SDS(guidance=2.0, weighting=Weighting("weighted"), explore=Explore(4, **options))
        loop = replace(LOOP, updates=1, batch_size=2)
        row = fit(subject(), method, Scorer(greenness, RING), ["a thing"], loop, progress=False)[0]
        assert len(row["candidate_rewards"]) == len(row["candidate_weights"]) == 2
        for rewards, weights in zip(row["candidate_rewards"], row["candidate_weights"], strict=True):
            judged = [(r, c) for r, c in zip(rewards, weights, strict=True) if r is not None]
            assert len(weights) == 4 and len(judged) == (2 if options else 4)
            assert sum(weights) == pytest.approx(1) == sum(c for _, c in judged)
            assert max(judged) == max(judged, key=lambda pair: pair[1]), "the best counts most"
        best = [max(r for r in rewards if r is not None) for rewards in row["candidate_rewards"]]
        assert sum(best) / 2 == pytest.approx(row["reward_best"])
    assert json.loads(json.dumps(row)) == row


def test_a_run_goes_on_to_the_same_bits(tmp_path):
    method = SDS(guidance=2.0, weighting=Weighting("weighted"), explore=Explore(3))
    loop = replace(LOOP, updates=4, checkpoint_every=2)

    def run(out, updates, resume=False):
        one = subject(64)
        score = Scorer(greenness, RING)
        fit(one, method, score, ["a thing"], replace(loop, updates=updates), out=out, resume=resume, progress=False)
        return [p.detach() for p in one.adapter.parameters()]

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    assert all(map(torch.equal, whole, run(tmp_path / "parts", 4, resume=True)))


def test_pictures_have_no_depth():
    shown = Shown(torch.rand(2, 3, 3, 4, 5))
    cameras = RING(Streams.batch(0, 0, 0, 2))
    assert shown.render(cameras, ("rgb",)).cameras is cameras
    with pytest.raises(ValueError, match="has no depth, normal; use a reward of pictures alone"):
        shown.render(cameras, ("rgb", "depth", "normal"))


def test_a_ring_is_evenly_spaced_at_one_height():
    cameras = Ring(views=4, elevation=(10.0, 20.0), radius=(1.2, 1.6))(Streams.batch(0, 0, 0, 5))
    centre = cameras.c2w[..., :3, 3]
    radius = centre.norm(dim=-1)
    assert ((radius > 1.2) & (radius < 1.6)).all() and float(radius.std(1).max()) < 1e-6
    elevation = torch.rad2deg(torch.asin(centre[..., 1] / radius))
    assert ((elevation > 10) & (elevation < 20)).all() and float(elevation.std(1).max()) < 1e-3
    azimuth = torch.rad2deg(torch.atan2(centre[..., 0], centre[..., 2]))
    steps = azimuth.diff(dim=1) % 360
    torch.testing.assert_close(steps, torch.full_like(steps, 90.0), rtol=0, atol=1e-3)
    assert azimuth[:, 0].std() > 10
    alone = Ring(views=4, elevation=(10.0, 20.0), radius=(1.2, 1.6))(Streams.batch(0, 0, 3, 1))
    torch.testing.assert_close(alone.c2w[0], cameras.c2w[3])


@pytest.mark.parametrize(
    "options",
    [
        {"views": 0},
        {"size": 0},
        {"elevation": (20.0, 10.0)},
        {"elevation": (0.0, 90.0)},
        {"turn": 400.0},
        {"radius": (0.0, 1.0)},
        {"focal": 0.0},
    ],
)
def test_bad_rings_are_refused(options):
    with pytest.raises(ValueError, match="cameras"):
        Ring(**options)


@pytest.mark.parametrize("arguments", [(0,), (4, 0.0), (4, 0.3, 1.0)])
def test_bad_balls_are_refused(arguments):
    with pytest.raises(ValueError, match="a ball needs Gaussians"):
        ball(*arguments)
