"""Gaussians that become more and fewer in the loop: the optimiser follows, and runs go on to the same bits."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from closed_prior import EllipsoidPrior
from command_checks import enter, refused, with_small_pictures

from align3d import checkpoint
from align3d.cli import main
from align3d.loop import Loop, fit
from align3d.methods.sds import SDS
from align3d.rng import Streams
from align3d.scenes.density.default import CloneSplit
from align3d.scenes.density.mcmc import MCMC
from align3d.scenes.ply import read_ply
from align3d.scenes.rings import Ring
from align3d.scenes.splats import NAMES, Splats, ball
from align3d.starts import GaussianStart, Stage
from align3d.subjects import Distilled
from align3d.trainer import Trainer

RING = Ring(views=3, size=12)
LOOP = Loop(updates=11, batch_size=2, learning_rate=0.01, betas=(0.9, 0.99), eps=1e-15, warmup=0, weight_decay=0.0)
LOOP = replace(LOOP, max_grad_norm=0.0, checkpoint_every=3)
FAIR = SDS(guidance=1.0, t_max=(0.98, 0.3), anneal=40)
KINDS = {
    "default": CloneSplit(every=4, first=4, grow=1.2, size=0.05, faint=0.09, reset=10, last=10),
    "mcmc": MCMC(every=4, first=4, more=1.2, faint=0.09, most=80),
}


def subject(density=None, num=64, ring=RING):
    prior = EllipsoidPrior(size=ring.size, views=ring.views)
    start = ball(num, generator=torch.Generator().manual_seed(0))
    start.opacities[:, ::2] = 0.6  # the others soon fade
    return Distilled(Splats(start, density), prior, ring)


def trained(one, loop=LOOP, **options):
    return fit(one, FAIR, lambda *_: None, ["a red thing"], loop, progress=False, **options)


def values(one):
    return {name: p.detach().clone() for name, p in one.trained.named_parameters()}


def same(one, other):
    one, other = values(one), values(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def started(density):
    one = subject(density)
    run = Trainer.start(one, FAIR, lambda *_: None, ["a red thing"], replace(LOOP, ema=0.9))
    return one, run


@pytest.mark.parametrize("kind", KINDS)
def test_the_optimiser_follows_row_by_row(kind):
    one, run = started(KINDS[kind])
    for update in range(4):
        assert run.learn(update)["gaussians"] == 64
    seen = []
    original = one.trained.take
    held = dict(one.adapter.named_parameters())

    def spied(before, after):
        named = [(name, held[f"scene.{name}"]) for name in NAMES]
        moments = {name: {k: v.clone() for k, v in run.state.optimizer.state[p].items()} for name, p in named}
        ema = {name: run.state.ema[f"scene.{name}"].clone() for name in NAMES}
        seen.append((before, after, moments, ema))
        return original(before, after)

    one.trained.take = spied
    run.refine(4)
    _, after, moments, ema = seen[0]
    kept = after.source >= 0
    assert len(one.trained) == len(after) != 64 and 0 < int(kept.sum()) < len(after)
    gone = set(range(64)) - set(after.source.tolist())
    assert gone, "some are pruned, or have become others"
    for name in NAMES:
        parameter = held[f"scene.{name}"]
        assert parameter is getattr(one.trained, name) and torch.equal(parameter.detach(), after.values[name])
        now = run.state.optimizer.state[parameter]
        for key in ("exp_avg", "exp_avg_sq"):
            assert now[key].shape == parameter.shape
            assert torch.equal(now[key][kept], moments[name][key][after.source[kept]]), "bits of those that stay"
            assert (now[key][~kept] == 0).all() and moments[name][key].abs().max() > 0
        assert now["step"] == moments[name]["step"]
        mean = run.state.ema[f"scene.{name}"]
        assert torch.equal(mean[kept], ema[name][after.source[kept]])
        assert torch.equal(mean[~kept], parameter.detach()[~kept])
    assert all((tally == 0).all() for name, tally in one.trained.named_parameters() if name in ("pulled", "seen"))
    assert run.learn(5)["gaussians"] == len(one.trained)
    assert all(torch.isfinite(p).all() for p in one.trained.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_has_a_gradient_after_a_change(kind):
    one = subject(KINDS[kind])
    rows = trained(one)
    assert len({row["gaussians"] for row in rows}) > 2 and rows[-1]["gaussians"] == len(one.trained)
    look = one.look(Streams.batch(0, 0, 0, 2))
    parts = [getattr(one.trained, name) for name in NAMES]
    for i in range(2):
        grads = torch.autograd.grad(look.latents[i].square().sum(), parts, retain_graph=True)
        for name, grad in zip(NAMES, grads, strict=True):
            assert torch.isfinite(grad).all() and grad.abs().max() > 0, name
            assert int((grad.reshape(len(grad), -1) != 0).any(1).sum()) > len(grad) / 2, name


@pytest.mark.parametrize("first", [6, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_to_the_same_bits_across_changes(tmp_path, kind, first):
    """It stops between two changes, or just before one, with what was summed up, and at another number of Gaussians."""
    loop = replace(LOOP, ema=0.8)
    whole = subject(KINDS[kind])
    trained(whole, loop, out=tmp_path / "whole")
    parts = subject(KINDS[kind])
    trained(parts, replace(loop, updates=first), out=tmp_path / "parts")
    assert len(parts.trained) != 64
    again = subject(KINDS[kind])
    trained(again, loop, out=tmp_path / "parts", resume=True)
    assert same(whole, again)
    files = [checkpoint.latest(tmp_path / name) / "state.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes(), "moments and running means too"
    rerun = subject(KINDS[kind])
    trained(rerun, loop)
    assert same(whole, rerun)
    other = subject(KINDS[kind])
    trained(other, replace(loop, seed=1))
    assert not same(whole, other)


@pytest.mark.parametrize(
    ("density", "idle"),
    [
        (CloneSplit(every=4, first=4, grow=1.2, faint=0.3), CloneSplit(first=10**6)),
        (CloneSplit(first=10**6, reset=4, last=4), CloneSplit(first=10**6)),
        (MCMC(every=4, first=4, more=1.2, noise=0.0), MCMC(first=10**6, noise=0.0)),
        (MCMC(every=4, first=4, more=1.0, faint=0.15, noise=0.0), MCMC(first=10**6, noise=0.0)),
    ],
)
def test_nothing_happens_that_no_update_follows(tmp_path, density, idle):
    """The scene that a run ends in is the one that its last update has made; a longer run has the change."""
    loop, quiet = replace(LOOP, updates=4), subject(idle)
    trained(quiet, loop)
    one = subject(density)
    rows = trained(one, loop, out=tmp_path / "run")
    assert same(one, quiet) and rows[-1]["gaussians"] == 64
    longer, whole, quiet = subject(density), subject(density), subject(idle)
    trained(longer, replace(loop, updates=5), out=tmp_path / "run", resume=True)
    trained(whole, replace(loop, updates=5))
    trained(quiet, replace(loop, updates=5))
    assert same(longer, whole) and not same(longer, quiet)


def test_noise_comes_between_updates_and_follows_the_learning_rate(monkeypatch):
    seen, original = [], MCMC.refine

    def spied(self, rows, done, rng, rate):
        seen.append((done, rng.step, rate))
        return original(self, rows, done, rng, rate)

    monkeypatch.setattr(MCMC, "refine", spied)
    one, quiet = subject(MCMC(noise=1e6)), subject(MCMC(noise=0.0))
    trained(one, replace(LOOP, updates=1))
    trained(quiet, replace(LOOP, updates=1))
    assert not seen and same(one, quiet)
    trained(one, replace(LOOP, updates=5, warmup=4))
    assert seen == [(n, n, pytest.approx(1e-3 * rate)) for n, rate in ((1, 0.5), (2, 0.75), (3, 1.0), (4, 1.0))]
    steps = []
    for ramp in (0.1, 1.0):
        scene = Splats(ball(64, generator=torch.Generator().manual_seed(0)), MCMC(noise=1e6, faint=0.2))
        before = scene.means.detach().clone()
        scene.refine(Streams.batch(0, 1, 0, 0), ramp)
        steps.append(scene.means.detach() - before)
    torch.testing.assert_close(10 * steps[0], steps[1], rtol=1e-3, atol=1e-6)
    assert steps[1].abs().max() > 1e-3


def test_two_batches_are_one():
    density = CloneSplit(every=2, first=2, grow=1.2, size=0.05, faint=0.09)
    one, two = subject(density), subject(density)
    trained(one, replace(LOOP, updates=3))
    trained(two, replace(LOOP, updates=3, batch_size=1, accumulate=2))
    assert len(one.trained) == len(two.trained) != 64
    for name, value in values(one).items():
        torch.testing.assert_close(value, values(two)[name], rtol=1e-3, atol=2e-3)


def test_pulls_are_those_of_the_rasteriser():
    """What is summed up is the norm of the gradient by the projected mean, in halves of the picture, view by view."""
    one = subject(CloneSplit(first=10**6))
    cameras = RING(Streams.batch(0, 0, 0, 2))
    rgb, _ = one.trained.shown(cameras, Streams.batch(0, 0, 0, 2), (1.0, 1.0, 1.0))
    rgb.square().sum().backward()
    one.tally(lambda x: x)
    leaf = torch.zeros(2, 3, 64, 2, requires_grad=True)
    one.trained(2).render(cameras, ("rgb",), (1.0, 1.0, 1.0), shift=leaf).rgb.square().sum().backward()
    pull = (leaf.grad * 6).norm(dim=-1)
    torch.testing.assert_close(one.trained.pulled.detach(), pull.sum((0, 1)))
    assert torch.equal(one.trained.seen.detach(), (pull > 0).float().sum((0, 1))) and one.trained.seen.max() == 6
    one.look(Streams.batch(0, 1, 0, 2)).latents.sum().backward()
    one.tally(lambda x: 0 * x)
    torch.testing.assert_close(one.trained.pulled.detach(), pull.sum((0, 1)))  # the mean over all processes counts


def test_without_a_way_nothing_is_watched_and_nothing_logged():
    one = subject()
    assert "gaussians" not in trained(one, replace(LOOP, updates=1))[0]
    assert one.growing == {} and set(values(one)) == set(NAMES)


def test_checkpoints_of_too_many_or_uneven_rows_are_refused(tmp_path):
    trained(subject(KINDS["mcmc"]), out=tmp_path / "run", loop=replace(LOOP, updates=6))
    path = checkpoint.latest(tmp_path / "run")
    for density, said in ((replace(KINDS["mcmc"], most=64), "instead of"), (None, "instead of")):
        _, run = started(density)
        run.state.ema.clear()
        with pytest.raises(ValueError, match=rf"adapter/scene.log_scales is \[\d+, 3\] {said} \[64, 3\]"):
            checkpoint.load(path, run.state)
    _, run = started(KINDS["mcmc"])
    run.state.ema.clear()
    assert checkpoint.load(path, run.state) == 6
    have = {name: tuple(value.shape) for name, value in run.state.tensors().items()}
    have["adapter/scene.quats"] = (65, 4)
    with pytest.raises(ValueError, match=r"adapter/scene.quats is \[65, 4\]"):
        checkpoint.check_shapes(path, have, run.state)


def test_starts_take_a_way():
    start = GaussianStart(num=32, density=CloneSplit(most=40))
    one = start.subject(Stage(EllipsoidPrior(size=12, views=3), RING))
    assert one.growing["scene.means"] == 40 and len(one.trained) == 32
    with pytest.raises(ValueError, match="begins with 32 Gaussians"):
        replace(start, density=MCMC(most=31)).subject(Stage(EllipsoidPrior(size=12, views=3), RING))


OPTIMIZE = ["optimize", "--prompt", "a red thing", "--prior", "closed_prior:Ellipsoids", "--reward", "closed_prior:red"]
OPTIMIZE += ["--out", "run", "--method.guidance", "1", "--cameras.size", "12", "--cameras.views", "3"]
OPTIMIZE += ["--scene.num", "64", "--updates", "6", "--loop.checkpoint-every", "3"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    with_small_pictures(monkeypatch)
    return enter(tmp_path, monkeypatch)


def test_a_way_is_chosen_by_name_with_its_options(here, capsys):
    more = ["--scene.density", "mcmc", "--scene.density.every", "2", "--scene.density.first=2"]
    more += ["--scene.density.most", "70"]
    assert main([*OPTIMIZE, *more]) == 0, capsys.readouterr().err
    assert read_ply(Path("run/scene.ply")).means.shape[1] == 70
    config = json.loads(Path("run/config.json").read_text())["config"]["scene"]
    assert config["density"] | {"name": "mcmc", "every": 2, "most": 70, "more": 1.05} == config["density"]
    part = [arg if arg != "run" else "part" for arg in [*OPTIMIZE, *more]]
    assert main([*part, "--updates", "3"]) == 0 and main([*part, "--resume"]) == 0
    assert Path("part/scene.ply").read_bytes() == Path("run/scene.ply").read_bytes()
    capsys.readouterr()
    other = [*OPTIMIZE, "--scene.density", "default", "--resume"]
    assert "scene.density.name was 'mcmc', now 'default'" in refused(capsys, other)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--scene.density", "nothing"], "unknown density 'nothing'; known: default, mcmc, none"),
        (["--scene.density", "closed_prior:red"], "is no density"),
        (["--scene.density", "mcmc", "--scene.density.most", "-1"], "scene.density.most must be 0 to"),
        (["--scene.density", "mcmc", "--scene.density.most", "63"], "begins with 64 Gaussians"),
        (["--scene.density.most", "63"], "scene.density.most"),
        (["--scene", "nerf", "--scene.density", "mcmc"], "scene.density"),
    ],
)
def test_what_cannot_be_is_refused(here, capsys, more, said):
    plain = [arg for arg in OPTIMIZE if arg not in ("--scene.num", "64")] if "nerf" in more else OPTIMIZE
    assert said in refused(capsys, [*plain, *more])


def test_help_and_list_know_the_ways(here, capsys):
    assert main(["optimize", "--scene.density", "default", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--scene.density NAME" in said and "--scene.density.grow" in said and "one of default, mcmc, none" in said
    assert main(["list", "densities"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["none", "default", "mcmc"]
