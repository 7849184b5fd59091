"""Nabla-R2D3 on a toy with a closed form: fixed point, slow twin, invariants, and what it costs."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from method_checks import F64, Recorder, Rounded, check_batches_of_one_add_up, flat, gradients, moved, plain, streams
from torch import Tensor, nn
from toy import PROMPTS, ToyModel, ToyScene, toy_score

from align3d.diffusion.sampler import rollout
from align3d.diffusion.schedule import DiscreteVP, Flow, x0_from_eps
from align3d.diffusion.transition import ddim, score_scale
from align3d.methods.nabla import Nabla
from align3d.methods.transitions import Chain
from align3d.rng import Streams

GAIN = 30.0  # a beta that suits the toy


class Table(nn.Module):
    def __init__(self, steps: int, latent_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(steps, *latent_shape, dtype=F64))


class FreeModel(ToyModel):
    """The toy with a free change of the prediction for every step, instead of a shift of the mean."""

    def __init__(self, steps: int) -> None:
        super().__init__(dtype=F64)
        self.adapter = None
        self.table = Table(steps, self.latent_shape)
        self.times = self.schedule.times(steps, F64)

    def mean(self, cond: Tensor) -> Tensor:
        return cond[:, None, None].expand(-1, self.latent_shape[0], 1)

    def predict(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        eps = super().predict(x, t, cond)
        step = (t[:, None] - self.times).abs().argmin(1)
        return eps + self.table.delta[step.clamp_max(len(self.table.delta) - 1)] if self.adapted else eps


@pytest.mark.parametrize("weight, gradient_at", [("balanced", "estimate"), ("paper", "estimate"), ("sigma", "x0")])
@pytest.mark.parametrize("attenuation, power", [("alpha_bar", 2), ("sqrt_alpha_bar", 1), ("none", 0)])
def test_fixed_point_is_the_reference_shifted_by_the_gradient(
    weight: str, gradient_at: str, attenuation: str, power: int
) -> None:
    steps, beta = 6, 0.7
    model = FreeModel(steps)
    slope = torch.linspace(-1, 1, 48, dtype=F64).reshape(8, 6)

    def linear(scene: ToyScene, prompts: Sequence[str], rng: Streams) -> Tensor:
        return (scene.latents * slope).flatten(1).sum(1)

    t, s = model.times[:-1], model.times[1:]
    alpha = model.schedule.alpha(s)
    by_state = 1 / alpha  # d x0_hat / d x_s
    if gradient_at == "estimate":
        by_state[-1] = 1  # the sample is its own estimate
    g = beta * alpha**power * by_state
    k = score_scale(model.schedule, t, s)
    with torch.no_grad():
        model.table.delta.copy_(-(g / k)[:, None, None] * slope)
    method = Nabla(beta=beta, weight=weight, attenuation=attenuation, transitions=steps, chunk=0)
    method = dataclasses.replace(method, gradient_at=gradient_at)
    (at_rest,) = method.losses(model, linear, model.times, PROMPTS, streams())
    assert at_rest.loss.item() < 1e-20
    assert at_rest.metrics["drift"].item() == pytest.approx(at_rest.metrics["pull"].item())
    with torch.no_grad():
        model.table.delta.mul_(1.1)
    (pushed,) = method.losses(model, linear, model.times, PROMPTS, streams())
    pushed.loss.backward()
    assert (model.table.delta.grad * model.table.delta).flatten(1).sum(1).gt(0).all()  # back, at every step


@pytest.mark.parametrize("jacobian", [False, True])
@pytest.mark.parametrize("weight", ["balanced", "paper"])
def test_loss_equals_the_scores_of_the_papers(weight: str, jacobian: bool) -> None:
    model = moved()
    method = Nabla(beta=GAIN, weight=weight, jacobian=jacobian, transitions=3, max_norm=0.05, chunk=0)
    times, rng = model.schedule.times(7, F64), streams()
    with torch.no_grad():
        traj = rollout(model, PROMPTS, times, rng)
    chosen = method.choose(7, rng, "transitions0")
    want = torch.zeros((), dtype=F64)
    for copy, j in enumerate(chosen):  # one transition at a time, from log-probabilities
        t, s = times[j].expand(2), times[j + 1].expand(2)
        x, y = traj.x[:, j], traj.x[:, j + 1].clone().requires_grad_()
        eps_next = model.predict(y, s, traj.cond) if jacobian else traj.eps[:, min(j + 1, 6)]
        x0 = y if j == 6 else x0_from_eps(model.schedule, y, eps_next, s)
        r = toy_score(model.decode(x0), PROMPTS, rng.repeat(1, first=copy))
        (g,) = torch.autograd.grad(GAIN * r.sum(), y)
        norm = g.flatten(1).norm(dim=1)[:, None, None]
        g = g * (0.05 / norm).clamp_max(1) * model.schedule.alpha(s)[:, None, None] ** 2
        flow = ddim(model.schedule, x, model.predict(x, t, traj.cond), t, s, 1.0).score(y.detach())
        with model.reference():
            ref = ddim(model.schedule, x, model.predict(x, t, traj.cond), t, s, 1.0).score(y.detach())
        residual = (flow - (ref + g)).square().flatten(1).mean(1)
        if weight == "balanced":
            k = score_scale(model.schedule, t, s)
            residual = residual / k**2 * (k**2).clamp_max(4.0)
        want = want + residual.mean() / 3
    want.backward()
    reference = flat(model)
    model.adapter.zero_grad()
    (got,) = method.losses(model, toy_score, times, PROMPTS, rng)
    got.loss.backward()
    torch.testing.assert_close(got.loss, want, rtol=1e-7, atol=0)
    torch.testing.assert_close(flat(model), reference, rtol=1e-7, atol=1e-12)
    assert got.update and got.metrics["dead"] == 0


class AdapterRecorder(Recorder):
    """Leaves out what is predicted for the reward's gradient, which goes to the states as well."""

    def keeps(self, x: Tensor, eps: Tensor) -> bool:
        return eps.requires_grad and not x.requires_grad


OPTIONS = [{}, {"chunk": 0}, {"merge": False}, {"gradient_at": "x0"}, {"gradient_at": "x0", "chunk": 0}]
OPTIONS += [{"weight": "paper"}, {"weight": "sigma", "gradient_at": "x0", "attenuation": "sqrt_alpha_bar"}]
OPTIONS += [{"jacobian": True}, {"chunk": 3, "scenes": 4}, {"gradient_at": "x0", "scenes": 1}]
SCHEDULES = [(DiscreteVP(), options) for options in OPTIONS] + [(Flow(), {}), (Flow(), {"gradient_at": "x0"})]


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("schedule, options", SCHEDULES)
def test_every_transition_of_every_sample_gets_a_gradient(schedule: object, options: dict, steps: int) -> None:
    model = AdapterRecorder(schedule=schedule)
    parts = []
    for step in Nabla(beta=GAIN, **options).losses(model, toy_score, schedule.times(steps), PROMPTS, streams()):
        step.loss.backward()
        parts.append(step)
    norms = model.norms().reshape(-1, 2)  # transition, sample
    assert norms.shape == (min(steps, 4), 2) and norms.isfinite().all()
    # without noise at time 0 the last step is deterministic given its prediction: k is infinite, the target eps_ref
    assert (norms[:-1] if isinstance(schedule, Flow) else norms).gt(0).all()
    assert parts[-1].metrics["dead"] == 0


@pytest.mark.parametrize("weight", ["paper", "sigma"])
def test_weights_of_papers_need_noise_at_time_zero(weight: str) -> None:
    model = ToyModel(schedule=Flow())
    with pytest.raises(ValueError, match=weight):
        list(Nabla(beta=1.0, weight=weight).losses(model, toy_score, model.schedule.times(5), PROMPTS, streams()))


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20, 50])
def test_transitions_are_stratified_and_the_last_is_in(steps: int) -> None:
    method, counts = Nabla(transitions=4), torch.zeros(steps)
    for step in range(300):
        chosen = method.choose(steps, streams(step=step), "transitions0")
        assert chosen == sorted(set(chosen)) and len(chosen) == min(4, steps) and chosen[-1] == steps - 1
        counts[chosen] += 1
        if steps == 50:
            assert 0 <= chosen[0] < 16 <= chosen[1] < 33 <= chosen[2] < 49
    assert (counts > 0).all()
    assert method.choose(steps, streams(1), "a") == method.choose(steps, streams(3, first=5), "a")  # shared by all


@pytest.mark.parametrize("options", OPTIONS)
def test_batches_of_one_add_up_to_a_batch_of_two(options: dict) -> None:
    check_batches_of_one_add_up(Nabla(beta=GAIN, **options))


@pytest.mark.parametrize("options", [{}, {"jacobian": True}, {"gradient_at": "x0"}, {"merge": False}])
@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_add_up_to_the_same_update(chunk: int, options: dict) -> None:
    method = Nabla(beta=GAIN, chunk=0, **options)
    model, parts = moved(), dataclasses.replace(method, chunk=chunk)
    torch.testing.assert_close(gradients(model, parts, streams()), gradients(model, method, streams()))
    (one,) = method.losses(model, toy_score, model.schedule.times(20, F64), PROMPTS, streams())
    many = list(parts.losses(model, toy_score, model.schedule.times(20, F64), PROMPTS, streams()))
    assert [s.update for s in many] == [False] * (len(many) - 1) + [True]
    assert all(not s.metrics for s in many[:-1]) and len(many) == -(-4 // chunk)
    for name, value in one.metrics.items():
        torch.testing.assert_close(many[-1].metrics[name], value, msg=name)


def test_same_bits_twice_and_other_bits_at_another_step() -> None:
    a, b, c = (gradients(ToyModel(), Nabla(beta=GAIN), streams(step=i)) for i in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_without_jacobian_the_reward_costs_no_prediction() -> None:
    counts = {}
    for jacobian in (False, True):
        model = ToyModel()
        gradients(model, Nabla(beta=GAIN, jacobian=jacobian, chunk=0, scenes=0), streams(), steps=20)
        counts[jacobian] = model.calls
    assert counts == {False: 20 + 1, True: 20 + 2}  # and the adapter's predictions are those of the sampler


def test_drift_acts_from_the_second_pass_on() -> None:
    def update(**options: object) -> tuple[list[bool], ToyModel]:
        model = ToyModel(dtype=F64)
        optimizer = torch.optim.SGD(model.adapter.parameters(), lr=0.3)
        flags = []
        for step in Nabla(beta=GAIN, **options).losses(
            model, toy_score, model.schedule.times(10, F64), PROMPTS, streams()
        ):
            step.loss.backward()
            flags.append(step.update)
            if step.update:
                optimizer.step()
                optimizer.zero_grad()
        return flags, model

    def shift(model: ToyModel) -> float:
        return float(model.adapter.bias.detach().norm())

    flags, once = update(drift=5.0, chunk=0)
    assert flags == [True] and shift(once) == shift(update(drift=0.0, chunk=0)[1])
    flags, twice = update(drift=0.0, inner_epochs=2, chunk=3)
    assert flags == [False, True, False, True]
    held = update(drift=5.0, inner_epochs=2, chunk=3)[1]
    assert shift(held) < shift(twice) and shift(twice) > shift(once)


def test_rounding_while_sampling_is_no_drift() -> None:
    model, times = Rounded(), DiscreteVP().times(5)
    a, b = (
        next(Nabla(beta=GAIN, drift=drift).losses(model, toy_score, times, PROMPTS, streams())) for drift in (0.0, 1e6)
    )
    assert torch.equal(a.loss, b.loss)


def test_metrics_speak_of_the_samples() -> None:
    model, rng = moved(), streams()
    times = model.schedule.times(6, F64)
    *_, step = Nabla(beta=GAIN).losses(model, toy_score, times, PROMPTS, rng)
    with torch.no_grad():
        x0 = rollout(model, PROMPTS, times, rng).x[:, -1]
    want = toy_score(model.decode(x0), PROMPTS, rng.repeat(1, first=3))
    torch.testing.assert_close(step.metrics["reward"], want.mean())
    torch.testing.assert_close(step.metrics["reward_std"], want.std(correction=0))
    assert step.metrics["beta"] == GAIN and step.metrics["drift"] > 0 and step.metrics["pull"] > 0
    assert plain(step.metrics)


def test_clip_limits_each_object_alone() -> None:
    model = ToyModel(dtype=F64)
    rng = streams()
    method = Nabla(beta=2.0, attenuation="none")
    (batch,) = Chain(model, PROMPTS, model.schedule.times(5, F64), rng, 1.0).transitions([1, 4])
    grad = torch.ones_like(batch.x)
    grad[0] *= 1e-3
    g = dataclasses.replace(method, max_norm=3.0).residual(model, batch, grad).flatten(1).norm(dim=1)
    torch.testing.assert_close(g, torch.tensor([2e-3 * 48**0.5, 3, 3, 3], dtype=F64))


def test_clip_after_attenuation_limits_what_the_loss_asks_for() -> None:
    model = ToyModel(dtype=F64)
    (batch,) = Chain(model, PROMPTS, model.schedule.times(5, F64), streams(), 1.0).transitions([0, 4])
    alpha = model.schedule.alpha(batch.s)
    grad = torch.ones_like(batch.x) / alpha[:, None, None]  # as the chain rule makes it at noisy states
    for attenuation, power in (("alpha_bar", 2), ("sqrt_alpha_bar", 1), ("none", 0)):
        asked = 2.0 * alpha ** (power - 1) * 48**0.5
        limit = float(asked.min()) * 1.01  # below what is asked for in one place, above it in the other
        method = Nabla(beta=2.0, attenuation=attenuation, max_norm=limit)
        published = method.residual(model, batch, grad).flatten(1).norm(dim=1)
        corrected = dataclasses.replace(method, max_norm_at="attenuated").residual(model, batch, grad)
        norms = corrected.flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, asked.clamp_max(limit))
        torch.testing.assert_close(published, (2.0 * 48**0.5 / alpha).clamp_max(limit) * alpha**power)
        assert attenuation == "none" or (published < 0.9 * norms).any()
        torch.testing.assert_close(corrected / norms[:, None, None], grad / grad.flatten(1).norm(dim=1)[:, None, None])
