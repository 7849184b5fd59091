"""ReFL against single chains that stop where they should, its steps, and that it climbs."""

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

from align3d.diffusion.sampler import rollout
from align3d.diffusion.schedule import DiscreteVP, Flow, x0_from_eps
from align3d.methods.refl import ReFL
from align3d.rewards.colorfulness import Colorfulness


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("first", [0.0, 0.75])
def test_each_sample_is_estimated_from_its_own_step(first: float, eta: float) -> None:
    model, method = moved(), ReFL(first=first, eta=eta)
    rng = next(r for i in range(99) if len(set(method.steps(10, r := streams(step=i)).tolist())) == 2)
    times, rewards = model.schedule.times(10, F64), []
    for row, k in enumerate(method.steps(10, rng).tolist()):  # one chain at a time, no further than needed
        own, prompt = streams(1, first=row, step=rng.shared[1]), PROMPTS[row : row + 1]
        x = own.normal("noise", model.latent_shape, like=times)
        if k:
            with torch.no_grad():
                x = rollout(model, prompt, times[: k + 1], own, eta).x[:, -1]
        t = times[k].expand(1)
        x0 = x0_from_eps(model.schedule, x, model.predict(x, t, model.encode(prompt)), t)
        rewards.append(toy_score(model.decode(x0), prompt, own))
    want = torch.cat(rewards)
    (-want.mean()).backward()
    reference = flat(model)
    (got,) = method.losses(model, toy_score, times, PROMPTS, rng)
    torch.testing.assert_close(got.loss, -want.mean())
    torch.testing.assert_close(got.metrics["reward"], want.mean().detach())
    torch.testing.assert_close(gradients(model, method, rng), reference)


def test_gradient_in_closed_form() -> None:
    """A reward that is the mean latent: d x0_hat / d mu = sigma^2 / (alpha^2 std^2 + sigma^2) for the toy."""
    model, rng = ToyModel(dtype=F64), streams(32)
    times, method = model.schedule.times(20, F64), ReFL()

    gradients(model, method, rng, PROMPTS * 16, 20, score=lambda scene, prompts, rng: scene.latents.flatten(1).mean(1))
    t = times[method.steps(20, rng)]
    a, b = model.schedule.alpha(t), model.schedule.sigma(t)
    want = -(b**2 / (a**2 * model.std**2 + b**2)).mean() / 8  # of 8 channels each carries an eighth of the mean
    torch.testing.assert_close(model.adapter.bias.grad, want.expand(8))


def test_the_published_steps() -> None:
    for total, low in ((20, 15), (40, 30)):  # of Nabla-R2D3's baseline and of ImageReward
        seen = ReFL().steps(total, streams(400)).tolist()
        assert sorted(set(seen)) == list(range(low, total))
    assert set(ReFL().steps(1, streams(8)).tolist()) == {0}
    assert set(ReFL(first=0.5, last=0.5).steps(10, streams(8)).tolist()) == {5}
    assert set(ReFL(first=1.0).steps(10, streams(8)).tolist()) == {9}
    assert set(ReFL(first=0.0, last=0.3).steps(10, streams(99)).tolist()) == {0, 1, 2}


def test_steps_do_not_depend_on_the_batch() -> None:
    whole = ReFL().steps(20, streams(6))
    assert torch.equal(whole[4:], ReFL().steps(20, streams(2, first=4))) and len(set(whole.tolist())) > 1
    shared = [ReFL(shared=True).steps(20, streams(3, first=4, step=i)) for i in range(20)]
    assert all(len(set(steps.tolist())) == 1 and len(steps) == 3 for steps in shared)
    assert len({int(steps[0]) for steps in shared}) > 1


def test_the_chain_stops_at_the_furthest_step() -> None:
    model, rng, method = ToyModel(), streams(), ReFL(first=0.2, last=0.6, track_drift=False)
    gradients(model, method, rng, steps=10)
    assert model.calls == int(method.steps(10, rng).max()) + 1 < 8


def test_samples_above_the_target_do_not_train() -> None:
    model, rng = Recorder(dtype=F64), streams()
    times = model.schedule.times(10, F64)
    (free,) = ReFL().losses(model, toy_score, times, PROMPTS, rng)
    free.loss.backward()
    (eps,) = model.trained
    mean, spread = float(free.metrics["reward"]), float(free.metrics["reward_std"])
    capped_model = Recorder(dtype=F64)
    (capped,) = ReFL(target=mean).losses(capped_model, toy_score, times, PROMPTS, rng)
    capped.loss.backward()
    assert float(capped.loss.detach()) == pytest.approx(spread / 2)  # one is above by as much as the other is below
    got, want = capped_model.trained[0].grad, eps.grad
    above = int(got.flatten(1).norm(dim=1).argmin())
    assert (got[above] == 0).all() and torch.equal(got[1 - above], want[1 - above])


@pytest.mark.parametrize("schedule", [DiscreteVP(), Flow()])
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_every_sample_gets_a_gradient(schedule: object, steps: int) -> None:
    model = Recorder(schedule=schedule)
    assert (gradients(model, ReFL(), streams(), steps=steps) != 0).all()
    norms = model.norms()
    assert norms.shape == (2,) and norms.isfinite().all() and (norms > 0).all()


@pytest.mark.parametrize("shared", [False, True])
def test_batches_of_one_add_up_to_a_batch_of_two(shared: bool) -> None:
    check_batches_of_one_add_up(ReFL(shared=shared))


def test_metrics() -> None:
    rng = streams()
    times = DiscreteVP().times(10, F64)
    (step,) = ReFL().losses(moved(), toy_score, times, PROMPTS, rng)
    assert set(step.metrics) == {"reward", "reward_std", "taken_at", "dead", "drift"} and step.metrics["drift"] > 0
    assert step.metrics["taken_at"] == ReFL().steps(10, rng).double().mean()
    assert plain(step.metrics)
    (fresh,) = ReFL().losses(ToyModel(dtype=F64), toy_score, times, PROMPTS, rng)
    assert fresh.metrics["drift"] == 0
    (bare,) = ReFL(track_drift=False).losses(moved(), toy_score, times, PROMPTS, rng)
    assert set(bare.metrics) == {"reward", "reward_std", "taken_at", "dead"}


def test_reward_rises_on_held_out_seeds() -> None:
    for method in (ReFL(), ReFL(shared=True, eta=0.0, target=0.9)):
        assert toy_reward(train(method, 8)) > toy_reward(ToyModel()) + 0.4


def test_trains_in_the_loop() -> None:
    check_trains_in_the_loop(ReFL(), Colorfulness())


def test_what_is_not_finite_names_the_prompt() -> None:
    check_a_nan_in_the_reward_names_the_prompt(ReFL())
    check_an_infinite_slope_names_the_prompt(ReFL())
    check_broken_predictions_name_prompt_and_step(ReFL(first=1.0), step=4)
    check_scores_that_cannot_train_are_refused(ReFL())


BAD = [{"first": -0.1}, {"last": 1.1}, {"first": 0.9, "last": 0.8}, {"first": float("nan")}]
BAD += [{"scenes": -1}, {"max_norm": -1.0}, {"max_norm": float("inf")}, {"target": float("inf")}, {"eta": 1.5}]


@pytest.mark.parametrize("options", BAD)
def test_bad_options_are_named(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ReFL(**options)
