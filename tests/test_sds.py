"""Distillation against a prior whose answers are known."""

from dataclasses import replace

import pytest
import torch
from closed_prior import COLOURS, ClosedPrior, H, PixelSubject, V, W, redness

from align3d.diffusion.schedule import bcast
from align3d.loop import Loop, fit
from align3d.methods.candidates import Explore
from align3d.methods.sds import SDS
from align3d.methods.weighting import Weighting
from align3d.rng import Streams

B = 2
PROMPTS = ["a red thing", "a blue thing"]
LOOP = Loop(updates=80, batch_size=1, learning_rate=0.05, warmup=0, weight_decay=0.0, max_grad_norm=0.0)
FAIR = SDS(guidance=1.0, t_max=(0.98, 0.3), anneal=60)


def streams(update=0, rows=B, first=0):
    return Streams.batch(0, update, first, rows)


def step(method, subject=None, rows=B, update=0, first=0, prompts=PROMPTS, score=redness):
    """The gradient by the latents of one update, and its metrics."""
    subject = subject or PixelSubject(rows)
    (loss,) = method.losses(subject, score, torch.linspace(1, 0, 3), prompts[:rows], streams(update, rows, first))
    loss.loss.backward()
    grad, subject.adapter.z.grad = subject.adapter.z.grad, None
    return grad, loss.metrics


def test_the_gradient_is_the_papers():
    """(1 - alpha_bar) (eps_hat - eps), written out, at a level and with a noise drawn again."""
    subject = PixelSubject(B)
    torch.nn.init.normal_(subject.adapter.z, generator=torch.Generator().manual_seed(1))
    method = SDS(guidance=3.0, negative="green")
    grad, metrics = step(method, subject)
    z, rng = subject.adapter.z.detach(), streams()
    t = 0.02 + 0.96 * rng.uniform("t", like=z)
    noise = rng.repeat(1).normal("candidate", (V, 3, H, W), like=z)
    a, b = (bcast(f(t), z) for f in (subject.schedule.alpha, subject.schedule.sigma))
    eps, away = (subject.predict(a * z + b * noise, t, subject.encode(p), None) for p in (PROMPTS, ["green"] * B))
    wanted = b**2 * (away + 3.0 * (eps - away) - noise)
    torch.testing.assert_close(grad, wanted / B)
    assert (grad.flatten(1).norm(dim=1) > 0).all()
    assert float(metrics["pull"]) == pytest.approx(float(wanted.flatten(1).norm(dim=1).mean()))


def test_the_scene_goes_to_what_the_prior_knows():
    prior = ClosedPrior()
    for text, name in (("red", "red"), ("green", "green"), ("blue", "blue")):
        subject = PixelSubject(1, prior)
        fit(subject, FAIR, redness, [text], LOOP, progress=False)
        far = (subject.adapter.z.detach() - prior.templates[name]).square().mean((1, 2, 3, 4)).min() ** 0.5
        assert float(far) < 0.25 * float(prior.templates["red"].std())


@pytest.mark.parametrize("weighting", ["best", "weighted", "min-max"])
def test_a_reward_chooses_where_the_prior_does_not_mind(weighting):
    """ "a thing" may have any colour: with the reward it is red in more of the runs."""

    def reds(method):
        found = 0
        for seed in range(6):
            subject = PixelSubject(1)
            fit(subject, method, redness, ["a thing"], replace(LOOP, seed=seed), progress=False)
            found += float(redness(subject.picture(subject.adapter.z.detach(), None), None, None)) > 0.5
        return found

    chosen = replace(FAIR, weighting=Weighting(weighting), explore=Explore(8, steps=2, guidance=1.0))
    assert len(COLOURS) == 3 and reds(FAIR) <= 2 and reds(chosen) >= 4


CHOOSING = SDS(guidance=2.0, weighting=Weighting("min-max"), explore=Explore(4, steps=3))


def test_batched_is_serial():
    grad, _ = step(CHOOSING)
    for i in range(B):
        alone, _ = step(CHOOSING, rows=1, first=i, prompts=PROMPTS[i:])
        torch.testing.assert_close(grad[i], alone[0] / B)


@pytest.mark.parametrize("chunk", [1, 3, 4, 5])
def test_chunks_change_nothing(chunk):
    whole, metrics = step(CHOOSING)
    part, others = step(replace(CHOOSING, explore=replace(CHOOSING.explore, chunk=chunk)))
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-12)
    assert {k: float(v) for k, v in others.items()} == pytest.approx({k: float(v) for k, v in metrics.items()})


def test_more_candidates_move_neither_level_nor_the_first_noises():
    few, many = Explore(2), Explore(5)
    like = torch.zeros(B, V, 3, H, W)
    assert torch.equal(many.noises(5, streams(), like)[: 2 * B], few.noises(2, streams(), like))
    t = CHOOSING.levels(streams(), like)
    assert torch.equal(SDS().levels(streams(), like), t) and t[0] != t[1]
    assert torch.equal(
        replace(SDS(), same_t=True).levels(streams(), like)[:1].expand(2),
        replace(SDS(), same_t=True).levels(streams(), like),
    )


def test_antithetic_noises_come_in_pairs():
    like = torch.zeros(B, V, 3, H, W)
    noise = Explore(4, antithetic=True).noises(4, streams(), like).unflatten(0, (4, B))
    assert torch.equal(noise[1], -noise[0]) and torch.equal(noise[3], -noise[2])
    assert torch.equal(noise[0], Explore(4).noises(4, streams(), like).unflatten(0, (4, B))[0])
    with pytest.raises(ValueError, match="pairs, got 3"):
        Explore(3, antithetic=True)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_walk_of_one_step_is_free(steps):
    """N candidates: two predictions each, and two more for every further step."""
    subject = PixelSubject(B)
    step(replace(CHOOSING, explore=Explore(4, steps=steps)), subject)
    assert subject.prior.rows == 2 * 4 * B * steps


def test_the_reward_is_asked_as_often_as_told():
    calls = []

    def score(scene, prompts, rng):
        calls.append(len(prompts))
        return redness(scene, prompts, rng)

    explore = Explore(4, every=2, first=5)
    for update in range(8):
        step(replace(CHOOSING, explore=explore), update=update, score=score)
    assert calls == [4 * B] * 3, "updates 0, 2 and 4"
    step(SDS(), score=score)
    assert len(calls) == 3, "one candidate needs no reward"


def test_the_limits_of_the_noise_move():
    like, method = torch.zeros(1, 1, 1), SDS(t_min=(0.9, 0.1), t_max=(0.9, 0.1), anneal=10)
    levels = [float(method.levels(streams(update, rows=1), like)) for update in (0, 5, 10, 20)]
    assert levels == pytest.approx([0.9, 0.5, 0.1, 0.1])


def test_same_seed_same_bits_and_another_number_of_updates_at_a_time():
    one, two = (PixelSubject(1), PixelSubject(1))
    for subject in (one, two):
        fit(subject, CHOOSING, redness, ["a thing"], replace(LOOP, updates=5), progress=False)
    assert torch.equal(one.adapter.z, two.adapter.z)


def test_a_reward_that_is_not_finite_is_named():
    def score(scene, prompts, rng):
        return redness(scene, prompts, rng) * float("nan")

    grad, metrics = None, None
    with pytest.raises(FloatingPointError, match="non-finite reward for prompt 'a red thing'"):
        grad, metrics = step(CHOOSING, score=score)
    assert grad is None and metrics is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SDS(weighting=Weighting("min-max"), explore=Explore(3)), "min-max needs 4 candidates"),
        (lambda: SDS(explore=Explore(4)), "4 candidates need a weighting"),
        (lambda: SDS(t_min=(0.5, 0.5), t_max=(0.4, 0.9)), "0 <= t_min <= t_max <= 1"),
        (lambda: SDS(guidance=float("nan")), "guidance 0 to 1e4"),
        (lambda: Explore(0), "1 or more"),
    ],
)
def test_what_cannot_work_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
