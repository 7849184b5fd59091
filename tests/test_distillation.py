"""What holds for every distillation, and the gradient of each written out, against a prior whose answers are known."""

from dataclasses import replace

import pytest
import torch
from closed_prior import ClosedPrior, EllipsoidPrior, H, PixelSubject, V, W, redness

from align3d import registry
from align3d.diffusion.schedule import add_noise, bcast, x0_from_eps
from align3d.loop import Loop, check, fit
from align3d.methods import DISTILLATIONS
from align3d.methods.bridge import Bridge
from align3d.methods.candidates import Explore
from align3d.methods.dds import DDS
from align3d.methods.nfsd import NFSD
from align3d.methods.recon import Recon
from align3d.methods.sds import SDS
from align3d.methods.weighting import KINDS, Weighting
from align3d.rng import Streams
from align3d.scenes.rings import Ring
from align3d.scenes.splats import Splats, ball
from align3d.subjects import Distilled

B = 2
PROMPTS = ["a red thing", "a blue thing"]
LOOP = Loop(updates=80, batch_size=1, learning_rate=0.05, warmup=0, weight_decay=0.0, max_grad_norm=0.0)
OPTIONS = {
    "bridge": {"stage_two": 1, "target": ", red", "source": ", green"},
    "nfsd": {"bad": "green"},
    "dds": {"source": "a green thing"},
}
NAMES = list(DISTILLATIONS)


def make(name, **options):
    """A method; the bridge is in its second stage from update 1 on."""
    found = registry.load(DISTILLATIONS, name)
    return found(**({"guidance": 2.0} | OPTIONS.get(name, {}) | options))


def subject(rows=B, first=0):
    """Scenes `first` and those that follow, with an adapter and an original."""
    prior = ClosedPrior(phi=0.3)
    z, before = 0.5 * torch.randn(2, 4, V, 3, H, W, dtype=prior.dtype, generator=torch.Generator().manual_seed(1))
    one = PixelSubject(rows, prior, original=before[first:])
    one.adapter.z.data.copy_(z[first : first + rows])
    return one


def streams(update=1, rows=B, first=0):
    return Streams.batch(0, update, first, rows)


def step(method, one=None, rows=B, update=1, first=0, score=redness):
    """The gradient by the latents of one update, and its metrics."""
    one = one or subject(rows, first)
    prompts = PROMPTS[first : first + rows]
    (loss,) = method.losses(one, score, torch.linspace(1, 0, 3), prompts, streams(update, rows, first))
    return torch.autograd.grad(loss.loss, one.adapter.z)[0], loss.metrics


def drawn(one, update=1, low=0.02, high=0.98):
    """Latents, levels, noise and noisy latents of an update of one candidate, drawn again."""
    z, rng = one.adapter.z.detach(), streams(update)
    t = low + (high - low) * rng.uniform("t", like=z)
    noise = rng.repeat(1).normal("candidate", tuple(z.shape[1:]), like=z)
    return z, t, noise, add_noise(one.schedule, z, noise, t)


def says(one, x, t, text):
    return one.predict(x, t, one.encode([text] * B if isinstance(text, str) else text), None)


def test_both_stages_of_the_bridge():
    method = Bridge(guidance=3.0, stage_two=5, target=" in red", source=" in green")
    one = subject()
    one.source = None
    z, t, noise, x = drawn(one, update=4)
    w = bcast(one.schedule.sigma(t) ** 2, z)
    first = w * (says(one, x, t, "") + 3.0 * (says(one, x, t, PROMPTS) - says(one, x, t, "")) - noise)
    torch.testing.assert_close(step(method, one, update=4)[0], first / B)
    z, t, noise, x = drawn(one, update=5)
    w = bcast(one.schedule.sigma(t) ** 2, z)
    to, away = ([p + more for p in PROMPTS] for more in (" in red", " in green"))
    second = w * 3.0 * (says(one, x, t, to) - says(one, x, t, away))
    torch.testing.assert_close(step(method, one, update=5)[0], second / B)


def test_the_bridge_explores_with_its_own_texts():
    one, asked = subject(), []
    encode = one.encode
    one.encode = lambda prompts: (asked.append(set(prompts)), encode(prompts))[1]
    method = Bridge(weighting=Weighting("best"), explore=Explore(2, steps=2))
    step(replace(method, stage_two=0), one)
    suffixed = {p + more for p in PROMPTS for more in (method.target, method.source)}
    assert len(asked) == 2 and all(texts == suffixed for texts in asked)
    asked.clear()
    step(method, one)
    assert all(texts == {*PROMPTS, ""} for texts in asked)


@pytest.mark.parametrize(("low", "high"), [(0.02, 0.19), (0.21, 0.98)])
def test_noise_free_gradients(low, high):
    one = subject()
    z, t, _, x = drawn(one, low=low, high=high)
    null, text = says(one, x, t, ""), says(one, x, t, PROMPTS)
    to_good = null - (says(one, x, t, "green") if low > 0.2 else 0)
    wanted = bcast(one.schedule.sigma(t) ** 2, z) * (to_good + 3.0 * (text - null))
    method = NFSD(guidance=3.0, bad="green", t_min=(low, low), t_max=(high, high))
    torch.testing.assert_close(step(method, one)[0], wanted / B)


def test_editing_takes_off_what_the_original_would_get():
    """Both have the same noise; an original that is the scene, with the same text, is not pulled at all."""
    one = subject()
    z, t, noise, x = drawn(one)
    x0 = add_noise(one.schedule, one.source(streams(), one.look(streams())), noise, t)

    def guided(x, text):
        return says(one, x, t, "") + 2.0 * (says(one, x, t, text) - says(one, x, t, ""))

    wanted = guided(x, PROMPTS) - guided(x0, "a green thing")
    torch.testing.assert_close(step(DDS(guidance=2.0, source="a green thing"), one)[0], wanted / B)
    one.source = lambda rng, look: z
    assert float(step(DDS(guidance=2.0, source="a blue thing"), one)[0][1].abs().max()) < 1e-12


def test_editing_changes_the_colour_and_keeps_the_stripe():
    """A striped red picture becomes a striped green one."""
    prior = ClosedPrior()
    red, green = (prior.templates[name][1:] for name in ("red", "green"))
    one = PixelSubject(1, prior, original=red.clone())
    one.adapter.z.data.copy_(red)
    method = DDS(guidance=1.0, source="red", t_max=(0.98, 0.3), anneal=100)
    fit(one, method, redness, ["green"], replace(LOOP, updates=150, learning_rate=0.02), progress=False)
    to_green, to_red = (float((one.adapter.z.detach() - other).abs().mean()) for other in (green, red))
    assert to_green < 0.3 * to_red


def test_the_reconstruction_is_pulled_to():
    one = subject()
    z, t, _, x = drawn(one)
    text, null = says(one, x, t, PROMPTS), says(one, x, t, "")
    x0, plain = (x0_from_eps(one.schedule, x, null + scale * (text - null), t) for scale in (4.0, 1.0))
    factor = (plain.flatten(1).std(1) + 1e-8) / (x0.flatten(1).std(1) + 1e-8)
    for rescale in (0.0, 0.5, 1.0):
        target = (rescale * bcast(factor, x0) + 1 - rescale) * x0
        torch.testing.assert_close(step(Recon(guidance=4.0, rescale=rescale), one)[0], (z - target) / B)
    ratio = bcast(one.schedule.sigma(t) / one.schedule.alpha(t), z)
    by_sds = step(SDS(guidance=4.0, weight="uniform"), one)[0]
    torch.testing.assert_close(step(Recon(guidance=4.0, rescale=0.0), one)[0], ratio * by_sds)


@pytest.mark.parametrize("name", ["bridge", "nfsd", "recon"])
def test_the_scene_goes_to_what_the_prior_knows(name):
    """NFSD and the second stage of the bridge have no noise to take off, so that they are left with its mean."""
    options = {"bridge": {"stage_two": 60}, "nfsd": {"bad": "a thing"}}.get(name, {})
    method = make(name, **({"guidance": 1.0, "t_max": (0.98, 0.3), "anneal": 60} | options))
    one = PixelSubject(1)
    fit(one, method, redness, ["blue"], LOOP, progress=False)
    templates = one.prior.templates
    far = {k: float((one.adapter.z.detach() - mu).square().mean((1, 2, 3, 4)).min()) for k, mu in templates.items()}
    assert min(far, key=far.get) == "blue"


def test_weights_of_the_levels():
    one = subject()
    _, t, _, _ = drawn(one)
    sigma, alpha = (bcast(f(t), one.adapter.z) for f in (one.schedule.sigma, one.schedule.alpha))
    weights = ("uniform", "variance", "fantasia3d")
    uniform, variance, fantasia = (step(SDS(guidance=2.0, weight=weight), one)[0] for weight in weights)
    torch.testing.assert_close(variance, sigma**2 * uniform)
    torch.testing.assert_close(fantasia, alpha * variance)


CHOOSING = {"weighting": Weighting("min-max"), "explore": Explore(4, steps=3)}


@pytest.mark.parametrize("name", NAMES)
def test_batched_is_serial(name):
    grad, _ = step(make(name, **CHOOSING))
    assert (grad.flatten(1).norm(dim=1) > 0).all() and torch.isfinite(grad).all()
    for i in range(B):
        alone, _ = step(make(name, **CHOOSING), rows=1, first=i)
        torch.testing.assert_close(grad[i], alone[0] / B)


@pytest.mark.parametrize("options", [{"halving": True}, {"views": 2}, {"antithetic": True}, {"steps": 1}])
def test_batched_is_serial_with_every_way_to_explore(options):
    explore = Explore(**{"candidates": 6, "steps": 3} | options)
    for kind in ("best", "min-max", "weighted"):
        method = make("sds", weighting=Weighting(kind), explore=explore)
        grad, _ = step(method)
        for i in range(B):
            torch.testing.assert_close(grad[i], step(method, rows=1, first=i)[0][0] / B)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk", [1, 5])
def test_chunks_change_nothing(name, chunk):
    explore = replace(CHOOSING["explore"], halving=True, views=2)
    whole, metrics = step(make(name, **CHOOSING | {"explore": explore}))
    part, others = step(make(name, **CHOOSING | {"explore": replace(explore, chunk=chunk)}))
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-12)
    assert {k: float(v) for k, v in others.items()} == pytest.approx({k: float(v) for k, v in metrics.items()})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_one_candidate_does_for_every_weighting(name, kind):
    def never(*args):
        raise AssertionError("the reward is not asked")

    grad, metrics = step(make(name, weighting=Weighting(kind)), score=never)
    assert torch.equal(grad, step(make(name))[0]) and "reward" not in metrics
    assert (grad.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("kind", ["best", "min-max", "weighted"])
def test_huge_rewards_do_not_overflow(kind):
    def score(scene, prompts, rng):
        return 1000 * torch.sign(redness(scene, prompts, rng) - 0.1)

    grad, _ = step(make("sds", weighting=Weighting(kind, zscore=False), explore=Explore(5)), score=score)
    assert torch.isfinite(grad).all() and (grad.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_has_the_gradient_that_it_says(name):
    """Finite differences of 1/2 |z - target|^2, with the target held where the method's own step leads to."""
    one, method = subject(), make(name)
    with torch.no_grad():
        towards, _, _ = method.step(one, one.look(streams()), redness, PROMPTS, streams())
    (loss,) = method.losses(one, redness, torch.ones(2), PROMPTS, streams())
    grad = torch.autograd.grad(loss.loss, one.adapter.z)[0]
    z = one.adapter.z.detach()
    target = z - towards
    for i in range(B):
        at = (i, *torch.unravel_index(towards[i].abs().argmax(), towards[i].shape))
        up, down, h = z.clone(), z.clone(), 1e-4
        up[at] += h
        down[at] -= h
        slope = (0.5 * (up - target).square().sum() - 0.5 * (down - target).square().sum()) / B / (2 * h)
        assert float(slope) and float(grad[at]) == pytest.approx(float(slope), rel=1e-5)
    pull = 0.5 * towards.square().flatten(1).sum(1).mean()
    assert float(loss.loss.detach() - loss.metrics.get("phi", 0)) == pytest.approx(float(pull))


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_bits(name):
    runs = []
    for _ in range(2):
        one = subject(1)
        method = make(name, weighting=Weighting("weighted"), explore=Explore(3, steps=2))
        fit(one, method, redness, ["a thing"], replace(LOOP, updates=3), progress=False)
        runs.append([p.detach() for p in one.adapter.parameters()])
    assert all(map(torch.equal, *runs))


def test_another_number_of_candidates_moves_neither_cameras_nor_levels():
    def looked(num):
        scene = Splats(ball(16, generator=torch.Generator().manual_seed(0)))
        one, seen = Distilled(scene, EllipsoidPrior(size=6, views=3), Ring(views=3, size=6)), {}
        look = one.look
        one.look = lambda rng: seen.setdefault("look", look(rng))
        method = SDS(guidance=2.0, weighting=Weighting("weighted"), explore=Explore(num))
        (loss,) = method.losses(one, redness, torch.ones(2), PROMPTS, streams())
        return seen["look"].cameras.c2w, loss.metrics["t"]

    (cameras, t), (others, s) = looked(2), looked(7)
    assert torch.equal(cameras, others) and torch.equal(t, s)


def test_penalties_of_the_scene_are_added():
    one = subject()
    look = one.look
    one.look = lambda rng: replace(look(rng), penalties={"size": one.adapter.z.square().sum()})
    grad, metrics = step(SDS(guidance=2.0), one)
    torch.testing.assert_close(grad, step(SDS(guidance=2.0))[0] + 2 * one.adapter.z.detach())
    assert float(metrics["size"]) == pytest.approx(float(one.adapter.z.detach().square().sum()))


def test_a_scene_is_edited_as_it_was_seen():
    scenes = [Splats(ball(16, generator=torch.Generator().manual_seed(s))) for s in (0, 1)]
    one = Distilled(scenes[0], EllipsoidPrior(size=6, views=3), Ring(views=3, size=6), original=scenes[1])
    look = one.look(streams())
    other = Distilled(scenes[1], one.prior, one.cameras).look(streams())
    assert torch.equal(one.source(streams(), look), other.latents.detach())
    assert all(name.startswith("scene.") for name, _ in one.adapter.named_parameters())
    assert Distilled(scenes[0], one.prior, one.cameras).source is None


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="dds edits a scene that there is already"):
        check(PixelSubject(1), DDS(source="red"), redness, PROMPTS)
    with pytest.raises(ValueError, match="needs to be told what the original shows"):
        check(subject(), DDS(), redness, PROMPTS)
    with pytest.raises(ValueError, match="rescale must be 0 to 1"):
        Recon(rescale=2.0)
    with pytest.raises(ValueError, match="stage_two must be 0 or more"):
        Bridge(stage_two=-1)
