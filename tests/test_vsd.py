"""VSD against a prior whose answers are known, and whose adapter can learn one scene."""

import json
import math
from dataclasses import replace

import pytest
import torch
from closed_prior import ClosedPrior, EllipsoidPrior, PixelSubject, V, redness
from safetensors.torch import save_file

from align3d.diffusion.schedule import add_noise, bcast
from align3d.loop import Loop, check, fit
from align3d.methods.candidates import Explore
from align3d.methods.sds import SDS
from align3d.methods.vsd import VSD
from align3d.methods.weighting import Weighting
from align3d.priors.embedded import Embedded
from align3d.priors.nets.views_unet import ViewsUNet
from align3d.rewards.score import Scorer
from align3d.rng import Streams
from align3d.scenes.rings import Ring
from align3d.scenes.splats import Splats, ball
from align3d.subjects import Distilled
from align3d.trainer import Trainer, grouped

WEIGHTS = "diffusion_pytorch_model.safetensors"

B = 2
PROMPTS = ["a red thing", "a blue thing"]
LOOP = Loop(updates=300, batch_size=1, learning_rate=0.02, warmup=0, weight_decay=0.0, max_grad_norm=0.0)


def streams(update=0, rows=B, first=0):
    return Streams.batch(0, update, first, rows)


def subject(rows=B, phi=0.3, spread=0.5):
    one = PixelSubject(rows, ClosedPrior(phi=phi))
    torch.nn.init.normal_(one.adapter.z, std=spread, generator=torch.Generator().manual_seed(1))
    torch.nn.init.normal_(one.adapter.phi.mean, std=spread, generator=torch.Generator().manual_seed(2))
    return one


def step(method, one, rows=B, update=0, first=0, prompts=PROMPTS):
    """Gradients by the latents and by phi, and the metrics, of one update."""
    (loss,) = method.losses(one, redness, torch.linspace(1, 0, 3), prompts[:rows], streams(update, rows, first))
    found = torch.autograd.grad(loss.loss, list(one.adapter.parameters()), allow_unused=True)
    return *found, loss.metrics


def test_the_gradients_are_the_papers():
    """w (eps_hat - eps_phi) for the scene, and that of |eps_phi - eps|^2 for phi, written out with draws made again."""
    one, method = subject(), VSD(guidance=2.0, negative="green")
    by_z, by_phi, metrics = step(method, one)
    z, rng = one.adapter.z.detach(), streams()
    t = 0.02 + 0.96 * rng.uniform("t", like=z)
    noise = rng.repeat(1).normal("candidate", tuple(z.shape[1:]), like=z)
    x = add_noise(one.schedule, z, noise, t)
    eps, away = (one.predict(x, t, one.encode(texts), None) for texts in (PROMPTS, ["green"] * B))
    w = bcast(one.schedule.sigma(t) ** 2, z)
    torch.testing.assert_close(by_z, w * (away + 2.0 * (eps - away) - one.phi(x, t, None, None)) / B)
    assert (by_z.flatten(1).norm(dim=1) > 0).all()
    t, noise = rng.uniform("phi t", like=z), rng.normal("phi noise", tuple(z.shape[1:]), like=z)
    loss = (one.phi(add_noise(one.schedule, z, noise, t), t, None, None) - noise).square().mean()
    torch.testing.assert_close(by_phi, torch.autograd.grad(loss, one.adapter.phi.mean)[0])
    assert float(metrics["phi"]) == pytest.approx(float(loss.detach()))


def test_the_error_in_v_is_that_in_eps_by_alpha():
    one = subject()
    z, rng = one.adapter.z.detach(), streams()
    t, noise = rng.uniform("phi t", like=z), rng.normal("phi noise", tuple(z.shape[1:]), like=z)
    x, alpha, sigma = (
        add_noise(one.schedule, z, noise, t),
        *(bcast(f(t), z) for f in (one.schedule.alpha, one.schedule.sigma)),
    )
    v = (one.phi(x, t, None, None) - sigma * x) / alpha
    wanted = (v - (alpha * noise - sigma * z)).square().mean()
    assert float(step(VSD(target="v"), one)[-1]["phi"]) == pytest.approx(float(wanted.detach()))


def test_phi_learns_the_score_of_the_scene():
    """Of a scene that stands still, phi's mean becomes the scene."""
    one = subject(rows=1)
    z = one.adapter.z.detach().clone()
    one.groups = lambda: {"z": {"lr": 0.0}}
    mean = z.mean((0, 1))
    before = float((one.adapter.phi.mean - mean).detach().norm())
    fit(one, VSD(phi_rate=0.03), redness, PROMPTS[:1], replace(LOOP, updates=200), progress=False)
    assert torch.equal(one.adapter.z.detach(), z), "its rate is 0"
    assert float((one.adapter.phi.mean - mean).detach().norm()) < 0.15 * before


def test_with_the_score_of_one_picture_it_is_sds():
    one = subject(rows=1, phi=1e-9)
    one.adapter.z.data.copy_(one.adapter.z[:, :1].expand_as(one.adapter.z))
    one.adapter.phi.mean.data.copy_(one.adapter.z[0, 0])
    (by_z, _, _), (wanted, *_) = (step(m, one, rows=1) for m in (VSD(guidance=3.0), SDS(guidance=3.0)))
    torch.testing.assert_close(by_z, wanted)


def test_nothing_pulls_a_scene_whose_distribution_is_the_priors():
    """phi has the score of the one template that the prior knows: VSD is 0 at any latents, SDS is not."""
    one = subject(rows=1)
    flat = one.prior.templates["red"][:1]
    one.prior.templates = {"red": flat}
    one.adapter.phi.mean.data.copy_(flat[0, 0])
    by_z, _, metrics = step(VSD(guidance=1.0), one, rows=1)
    assert float(by_z.abs().max()) < 1e-9 and float(metrics["phi"]) > 0
    assert float(step(SDS(guidance=1.0), one, rows=1)[0].abs().max()) > 0.01


def test_the_scene_goes_to_what_the_prior_knows():
    """phi has to be much faster than the scene, else the two go round each other."""
    one = PixelSubject(1, ClosedPrior(phi=0.3))
    method = VSD(guidance=1.0, t_max=(0.98, 0.3), anneal=60, phi_rate=0.1)
    fit(one, method, redness, ["green"], replace(LOOP, updates=400, learning_rate=0.01), progress=False)
    far = (one.adapter.z.detach() - one.prior.templates["green"]).square().mean((1, 2, 3, 4)).min() ** 0.5
    assert float(far) < 0.35 * float(one.prior.templates["green"].std())


CHOOSING = VSD(guidance=2.0, weighting=Weighting("min-max"), explore=Explore(4, steps=2))


def test_batched_is_serial():
    by_z, by_phi, _ = step(CHOOSING, subject())
    alone = []
    for i in range(B):
        one = subject()
        one.adapter.z = torch.nn.Parameter(one.adapter.z.detach()[i : i + 1])
        parts = step(CHOOSING, one, rows=1, first=i, prompts=PROMPTS[i:])
        named = dict(zip((name for name, _ in one.adapter.named_parameters()), parts[:2], strict=True))
        torch.testing.assert_close(by_z[i], named["z"][0] / B)
        alone.append(named["phi.mean"])
    torch.testing.assert_close(by_phi, sum(alone) / B)


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_change_nothing(chunk):
    whole, part = (step(replace(CHOOSING, explore=replace(CHOOSING.explore, chunk=c)), subject()) for c in (0, chunk))
    for a, b in zip(whole[:2], part[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_rewards_do_not_enter_phi():
    (_, alone, _), (_, chosen, _) = (step(method, subject()) for method in (VSD(guidance=2.0), CHOOSING))
    assert torch.equal(alone, chosen)


def test_phi_has_options_of_its_own():
    one = subject(rows=1)
    loop = replace(LOOP, weight_decay=0.1, betas=(0.9, 0.99), eps=1e-15)
    run = Trainer.start(one, VSD(), redness, PROMPTS[:1], loop)
    groups = {len(g["params"][0].shape): g for g in run.state.optimizer.param_groups}
    scene, phi = groups[5], groups[3]
    assert (phi["lr"], phi["weight_decay"], phi["betas"], phi["eps"]) == (3e-4, 0.0, (0.9, 0.999), 1e-8)
    assert (scene["lr"], scene["weight_decay"], scene["betas"], scene["eps"]) == (0.02, 0.1, (0.9, 0.99), 1e-15)


def space(phi=0.35):
    prior = EllipsoidPrior(size=8, views=V, phi=phi)
    start = ball(32, generator=torch.Generator().manual_seed(0))
    return Distilled(Splats(start), prior, Ring(views=V, size=8))


def test_evaluations_of_phi_are_counted():
    """With the text and without, and by phi: at the scene's noise, and at its own."""
    rows = fit(subject(), VSD(), redness, PROMPTS[:1], replace(LOOP, batch_size=B, updates=1), progress=False)
    assert rows[0]["evaluations"] == 4 * B


def test_options_are_of_all_parameters_below_a_name():
    """The longest name counts, a name is not the beginning of another, and the method goes before the subject."""
    names = ("scene.mean", "scene.means", "scene.deep.one", "scene.deep.two", "phi.a.b", "other")
    each = {name: torch.nn.Parameter(torch.zeros(1)) for name in names}
    one = subject()
    one.groups = lambda: {"scene": {"lr": 1.0}, "scene.mean": {"lr": 2.0}, "scene.deep": {"lr": 3.0}}

    class Own(VSD):
        def groups(self):
            return {"scene.deep": {"lr": 4.0}, "phi.a": {"lr": 5.0, "eps": 1e-3}}

    groups = grouped(one, Own(), each, LOOP)
    found = {name: g["lr"] for g in groups for name, p in each.items() if any(p is q for q in g["params"])}
    assert found == dict(zip(names, (2.0, 1.0, 4.0, 4.0, 5.0, LOOP.learning_rate), strict=True))
    assert [g["eps"] for g in groups if "eps" in g] == [1e-3]


def test_the_embedded_prior_has_a_phi(tmp_path):
    """A LoRA of its network: at first phi is the prior; it trains, and the prior stays."""
    network = ViewsUNet(size=8, widths=(8, 12, 16), heads=(2, 2), embed=16)
    for name, parameter in network.named_parameters():
        with torch.no_grad():
            parameter.copy_(series(parameter.shape, len(name)))
    (tmp_path / "config.json").write_text(json.dumps(network.config))
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / WEIGHTS)
    prior = Embedded(tmp_path, rank=2, precision="float32").load()
    start = ball(32, generator=torch.Generator().manual_seed(0))
    one = Distilled(Splats(start), prior, Ring(views=V, size=8))
    look = one.look(streams())
    at = look.latents.detach(), torch.full((B,), 0.5), one.encode(PROMPTS), look.cameras
    before = one.predict(*at)
    assert torch.equal(one.phi(*at).detach(), before)
    fit(one, VSD(phi_rate=0.1), redness, PROMPTS[:1], replace(LOOP, updates=2), progress=False)
    assert torch.equal(one.predict(*at), before)
    assert not torch.allclose(one.phi(*at).detach(), before, atol=1e-4)


def series(shape, start):
    """Numbers of about the size that keeps a layer's outputs."""
    num = math.prod(shape)
    return torch.sin(1.7 * torch.arange(num) + start).view(shape) * (num // shape[0]) ** -0.5


def test_the_parameters_of_scene_and_phi_have_names():
    names = [name for name, _ in space().adapter.named_parameters()]
    assert names[0] == "scene.means" and names[-1] == "phi.mean" and len(names) == 6
    assert [name for name, _ in space(phi=None).adapter.named_parameters()] == names[:-1]


def test_the_prior_stays_what_it_was():
    one = space()
    look = one.look(streams())
    x, t = look.latents.detach(), torch.full((B,), 0.5)
    before = one.predict(x, t, one.encode(PROMPTS), look.cameras)
    fit(one, VSD(phi_rate=0.1), redness, PROMPTS[:1], replace(LOOP, updates=2), progress=False)
    assert torch.equal(one.predict(x, t, one.encode(PROMPTS), look.cameras), before)
    assert float(one.prior.adapter.mean.detach().abs().max()) > 0.1


def test_a_run_goes_on_to_the_same_bits(tmp_path):
    """Scene, phi and both optimisers."""
    loop = replace(LOOP, checkpoint_every=2, batch_size=2)

    def red(views, prompts):
        return views.rgb[:, :, 0].mean((-2, -1))

    def run(out, updates, resume=False):
        one = space()
        method = VSD(weighting=Weighting("weighted"), explore=Explore(3), phi_rate=0.01)
        score = Scorer(red, one.cameras)
        fit(one, method, score, ["a thing"], replace(loop, updates=updates), out=out, resume=resume, progress=False)
        return [p.detach() for p in one.adapter.parameters()]

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    assert all(map(torch.equal, whole, run(tmp_path / "parts", 4, resume=True)))


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match=r"give --prior\.rank 4"):
        check(PixelSubject(1), VSD(), redness, PROMPTS)
    with pytest.raises(ValueError, match="phi_rate must be above 0"):
        VSD(phi_rate=0.0)
