"""DRaFT against plain backpropagation, its low-variance estimator, and that it climbs."""

import dataclasses

import pytest
import torch
from method_checks import (
    F64,
    Recorder,
    check_a_nan_in_the_reward_names_the_prompt,
    check_an_infinite_slope_names_the_prompt,
    check_batches_of_one_add_up,
    check_broken_predictions_name_prompt_and_step,
    check_scores_that_cannot_train_are_refused,
    check_trains_in_the_loop,
    flat,
    gradients,
    moved,
    plain,
    streams,
    train,
)
from toy import PROMPTS, ToyModel, toy_reward, toy_score

from align3d.diffusion.sampler import advance, rollout
from align3d.diffusion.schedule import DiscreteVP, Flow
from align3d.diffusion.transition import ddim
from align3d.methods.draft import Draft, renoise
from align3d.rewards.colorfulness import Colorfulness

STEPS = 6


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("last", [1, 2, 5, 6, 50])
def test_gradient_is_that_of_the_chain_cut_before_the_last_steps(last: int, eta: float) -> None:
    model, rng = moved(), streams()
    times, cond = model.schedule.times(STEPS, F64), model.encode(PROMPTS)
    x = rng.normal("noise", model.latent_shape, like=times)
    for k in range(STEPS):  # under grad mode from the first step on
        if k == STEPS - last:
            x = x.detach()
        t, s = times[k].expand(2), times[k + 1].expand(2)
        step = ddim(model.schedule, x, model.predict(x, t, cond), t, s, eta)
        x = step.sample(rng.normal(f"step{k}", model.latent_shape, like=x))
    want = -toy_score(model.decode(x), PROMPTS, rng).mean()
    want.backward()
    reference = flat(model)
    (got,) = Draft(last=last, eta=eta).losses(model, toy_score, times, PROMPTS, rng)
    torch.testing.assert_close(got.loss, want, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(model, Draft(last=last, eta=eta), rng, steps=STEPS), reference)
    assert got.update and reference.abs().min() > 0


def test_all_steps_is_backpropagation_through_the_sampler() -> None:
    model, rng = moved(), streams()
    x = rollout(model, PROMPTS, model.schedule.times(STEPS, F64), rng).x[:, -1]
    (-toy_score(model.decode(x), PROMPTS, rng).mean()).backward()
    reference = flat(model)
    torch.testing.assert_close(gradients(model, Draft(last=STEPS), rng, steps=STEPS), reference)
    assert not torch.allclose(gradients(model, Draft(), rng, steps=STEPS), reference, rtol=0.05)


def test_recomputing_gives_the_same_gradient_and_calls_the_network_again() -> None:
    for last in (1, 4, STEPS):
        plain, again = moved(), moved()
        method = Draft(last=last, track_drift=False)
        want = gradients(plain, method, streams(), steps=STEPS)
        got = gradients(again, dataclasses.replace(method, recompute=True), streams(), steps=STEPS)
        assert torch.equal(got, want)
        assert plain.calls == STEPS and again.calls == STEPS + last


def test_a_chain_goes_on_where_it_stopped() -> None:
    model, rng = moved(), streams()
    times = model.schedule.times(STEPS, F64)
    with torch.no_grad():
        whole = rollout(model, PROMPTS, times, rng)
        rest = advance(model, PROMPTS, whole.x[:, 4], times[4:], rng, first=4)
    assert torch.equal(rest.x, whole.x[:, 4:]) and torch.equal(rest.eps, whole.eps[:, 4:]) and len(rest) == 2


@pytest.mark.parametrize("schedule", [DiscreteVP(), Flow()])
def test_renoise_keeps_the_marginal(schedule: object) -> None:
    s, t = torch.tensor(0.1, dtype=F64), torch.tensor(0.4, dtype=F64)
    one, zero = torch.ones(2, 8, 6, dtype=F64), torch.zeros(2, 8, 6, dtype=F64)
    ratio, std = renoise(schedule, one, zero, s, t)[0, 0, 0], renoise(schedule, zero, one, s, t)[0, 0, 0]
    torch.testing.assert_close(ratio * schedule.alpha(s), schedule.alpha(t))
    torch.testing.assert_close((ratio * schedule.sigma(s)) ** 2 + std**2, schedule.sigma(t) ** 2)


def test_copies_are_averaged() -> None:
    model, rng, n = moved(), streams(), 3
    times = model.schedule.times(STEPS, F64)
    with torch.no_grad():
        x0 = rollout(model, PROMPTS, times, rng).x[:, -1]
    rewards = []
    for j in range(n):
        own = rng.repeat(1, first=j)
        x = renoise(model.schedule, x0, own.normal("renoise", model.latent_shape, like=x0), times[-1], times[-2])
        t, s = times[-2].expand(2), times[-1].expand(2)
        step = ddim(model.schedule, x, model.predict(x, t, model.encode(PROMPTS)), t, s, 1.0)
        end = step.sample(own.normal(f"step{STEPS - 1}", model.latent_shape, like=x))
        rewards.append(toy_score(model.decode(end), PROMPTS, own))
    want = torch.stack(rewards)
    (-want.mean()).backward()
    reference = flat(model)
    steps = list(Draft(copies=n).losses(model, toy_score, times, PROMPTS, rng))
    assert [s.update for s in steps] == [False, False, True] and not steps[0].metrics
    torch.testing.assert_close(sum(s.loss for s in steps), -want.mean())
    torch.testing.assert_close(steps[-1].metrics["reward"], want.mean().detach())
    torch.testing.assert_close(gradients(model, Draft(copies=n), rng, steps=STEPS), reference)


def test_copies_estimate_the_same_gradient_with_less_variance() -> None:
    """At the reference the toy is its own optimal denoiser: noised samples are distributed like states of the chain."""
    mean, spread = {}, {}
    for copies in (0, 1, 8):
        model = Recorder(dtype=F64)
        mean[copies] = gradients(model, Draft(copies=copies), streams(300), PROMPTS[:1] * 300)
        rows = sum(eps.grad for eps in model.trained).flatten(1)  # the gradient by mu is in proportion to this
        spread[copies] = float(rows.std(0).mean() / rows.mean(0).abs().mean())
    for n in (1, 8):
        assert (mean[n] - mean[0]).norm() < 0.02 * mean[0].norm()
    assert spread[1] == pytest.approx(spread[0], rel=0.1) and spread[8] < 0.8 * spread[1]


@pytest.mark.parametrize("schedule", [DiscreteVP(), Flow()])
@pytest.mark.parametrize(
    "steps, method", [(1, Draft()), (2, Draft(last=2)), (20, Draft(last=3)), (20, Draft(copies=2))]
)
def test_every_sample_gets_a_gradient(schedule: object, steps: int, method: Draft) -> None:
    model = Recorder(schedule=schedule)
    assert (gradients(model, method, streams(), steps=steps) != 0).all()
    norms = model.norms()
    assert norms.shape == (2 * max(method.last, method.copies),) and norms.isfinite().all() and (norms > 0).all()


@pytest.mark.parametrize("method", [Draft(), Draft(last=3), Draft(copies=2)])
def test_batches_of_one_add_up_to_a_batch_of_two(method: Draft) -> None:
    check_batches_of_one_add_up(method)


def test_metrics_speak_of_the_samples() -> None:
    model, rng = moved(), streams()
    times = model.schedule.times(STEPS, F64)
    (step,) = Draft(last=2).losses(model, toy_score, times, PROMPTS, rng)
    with torch.no_grad():
        traj = rollout(model, PROMPTS, times, rng)
        reward = toy_score(model.decode(traj.x[:, -1]), PROMPTS, rng)
        with model.reference():
            ref = model.predict(traj.x[:, 4], times[4].expand(2), traj.cond)
    drift = (traj.eps[:, 4] - ref).flatten(1).norm(dim=1) / ref.flatten(1).norm(dim=1)
    torch.testing.assert_close(step.metrics["reward"], reward.mean())
    torch.testing.assert_close(step.metrics["reward_std"], reward.std(correction=0))
    torch.testing.assert_close(step.metrics["drift"], drift.mean())
    assert plain(step.metrics)
    (fresh,) = Draft().losses(ToyModel(dtype=F64), toy_score, times, PROMPTS, rng)
    assert fresh.metrics["drift"] == 0
    (bare,) = Draft(track_drift=False).losses(model, toy_score, times, PROMPTS, rng)
    assert set(bare.metrics) == {"reward", "reward_std", "dead"}


@pytest.mark.parametrize("method", [Draft(), Draft(last=4), Draft(copies=2), Draft(last=8, recompute=True, eta=0.0)])
def test_reward_rises_on_held_out_seeds(method: Draft) -> None:
    assert toy_reward(train(method, 8)) > toy_reward(ToyModel()) + 0.4


def test_trains_in_the_loop() -> None:
    for method in (Draft(), Draft(last=3, recompute=True), Draft(copies=2)):
        check_trains_in_the_loop(method, Colorfulness())


def test_what_is_not_finite_names_the_prompt() -> None:
    for method in (Draft(), Draft(last=5, recompute=True)):
        check_a_nan_in_the_reward_names_the_prompt(method)
        check_an_infinite_slope_names_the_prompt(method)
        check_broken_predictions_name_prompt_and_step(method, step=4)
    check_scores_that_cannot_train_are_refused(Draft())


BAD = [
    {"scenes": -1},
    {"max_norm": 0.0},
    {"max_norm": float("nan")},
    {"last": 0},
    {"copies": -1},
    {"copies": 2, "last": 2},
    {"eta": -0.1},
    {"eta": 1.5},
    {"eta": float("nan")},
]


@pytest.mark.parametrize("options", BAD)
def test_bad_options_are_named(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Draft(**options)
