"""Schedules of Nabla: on the sampler's own predictions or on new ones, gradient at estimates or at the sample."""

from collections.abc import Sequence

import pytest
import torch
from method_checks import F64, flat, gradients, moved, streams
from test_nabla import GAIN, OPTIONS
from tiny_model import shake, tiny, write_checkpoint
from torch import Tensor
from toy import PROMPTS, ToyModel, ToyScene, toy_score

from align3d.diffusion.sampler import rollout
from align3d.diffusion.transition import ddim
from align3d.methods.nabla import Nabla
from align3d.methods.transitions import Chain
from align3d.rng import Streams


@pytest.mark.parametrize("options", OPTIONS)
def test_trains_on_the_predictions_of_the_sampler(options: dict) -> None:
    """The merged schedule is the plain one, to the last digit but one, at fewer predictions."""
    plain, merged = moved(), moved()
    want = gradients(plain, Nabla(beta=GAIN, **{**options, "merge": False}), streams())
    got = gradients(merged, Nabla(beta=GAIN, **options), streams())
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)
    assert (got != 0).all()
    merges = Nabla(**options).merges
    assert merges == (options not in ({"merge": False}, OPTIONS[3], OPTIONS[6], OPTIONS[9]))
    chunks = {0: 1, 3: 2}.get(options.get("chunk", 1), 4)
    assert plain.calls - merged.calls == (chunks if merges else 0)


@pytest.mark.parametrize("options", [{}, {"chunk": 0}, {"gradient_at": "x0", "chunk": 0}])
def test_later_passes_predict_again(options: dict) -> None:
    """After an update the sampler's predictions are no longer the adapter's."""
    shifts = []
    for merge in (False, True):
        model = ToyModel(dtype=F64)
        optimizer = torch.optim.SGD(model.adapter.parameters(), lr=0.3)
        method = Nabla(beta=GAIN, inner_epochs=2, drift=0.5, merge=merge, **options)
        for step in method.losses(model, toy_score, model.schedule.times(10, F64), PROMPTS, streams()):
            step.loss.backward()
            if step.update:
                optimizer.step()
                optimizer.zero_grad()
        shifts.append(model.adapter.bias.detach())
    torch.testing.assert_close(shifts[0], shifts[1], rtol=1e-12, atol=1e-15)


def test_a_graph_is_kept_until_its_loss_and_no_longer() -> None:
    model, rng = moved(), streams()
    times = model.schedule.times(6, F64)
    chain = Chain(model, PROMPTS, times, rng, 1.0)
    seen = []
    for batch in chain.transitions([1, 2, 5], chunk=1, keep=[1, 2, 5]):
        seen.append((len(chain.eps), [k for k, eps in enumerate(chain.eps) if eps.requires_grad]))
        assert batch.eps.requires_grad and not batch.eps_next.requires_grad and not batch.x_next.requires_grad
    assert seen == [(3, [1, 2]), (4, [2]), (6, [5])]  # the next prediction is made for the estimate, and waits
    with torch.no_grad():
        want = rollout(model, PROMPTS, times, rng)
    assert torch.equal(torch.stack(chain.x, 1), want.x) and torch.equal(torch.stack(chain.eps, 1), want.eps)
    assert not any(eps.requires_grad for eps in chain.eps)


def test_gradient_at_the_sample_is_taken_once() -> None:
    calls = []

    def counted(scene: ToyScene, prompts: Sequence[str], rng: Streams) -> Tensor:
        calls.append(len(prompts))
        return toy_score(scene, prompts, rng)

    for chunk in (0, 1):
        model = moved()
        steps = list(
            Nabla(beta=GAIN, gradient_at="x0", inner_epochs=2, chunk=chunk).losses(
                model, counted, model.schedule.times(20, F64), PROMPTS, streams()
            )
        )
        assert calls == [2] and len(steps) == (2 if chunk == 0 else 8)
        calls.clear()
    with torch.no_grad():
        x0 = rollout(model, PROMPTS, model.schedule.times(20, F64), streams()).x[:, -1]
    torch.testing.assert_close(
        steps[-1].metrics["reward"], toy_score(ToyScene(x0), PROMPTS, streams().repeat(1)).mean()
    )


def test_weight_sigma_is_the_loss_of_reward_score_matching() -> None:
    """Both scores and the gradient at x0, times the std of the step (use_z0 and sigma of the public code)."""
    model = moved()
    times, rng = model.schedule.times(7, F64), streams()
    method = Nabla(beta=GAIN, gradient_at="x0", attenuation="sqrt_alpha_bar", weight="sigma", transitions=3, chunk=0)
    with torch.no_grad():
        traj = rollout(model, PROMPTS, times, rng)
    x0 = traj.x[:, -1].clone().requires_grad_()
    (g,) = torch.autograd.grad(GAIN * toy_score(ToyScene(x0), PROMPTS, rng.repeat(1)).sum(), x0)
    want = torch.zeros((), dtype=F64)
    for j in method.choose(7, rng, "transitions0"):
        t, s = times[j].expand(2), times[j + 1].expand(2)
        x, y = traj.x[:, j], traj.x[:, j + 1]
        step = ddim(model.schedule, x, model.predict(x, t, traj.cond), t, s, 1.0)
        with model.reference():
            ref = ddim(model.schedule, x, model.predict(x, t, traj.cond), t, s, 1.0)
        want = want + (step.std * (step.score(y) - ref.score(y) - g)).square().mean() / 3
    (got,) = method.losses(model, toy_score, times, PROMPTS, rng)
    torch.testing.assert_close(got.loss, want, rtol=1e-7, atol=0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights"))


def splats(scene: object, prompts: Sequence[str], rng: Streams) -> Tensor:
    """A score of Gaussians that needs no pictures; differs from sample to sample and from copy to copy."""
    camera = 0.5 + rng.uniform("camera", like=scene.colors)
    return camera * scene.colors.tanh().flatten(1).mean(1) + scene.means.square().flatten(1).mean(1)


@pytest.mark.parametrize("precision, rounding", [("float32", 1e-4), ("bfloat16", 0.05)])
@pytest.mark.parametrize(
    "options", [{}, {"chunk": 0, "scenes": 1}, {"gradient_at": "x0", "chunk": 0}, {"jacobian": True, "scenes": 3}]
)
def test_schedules_agree_on_a_network(weights, monkeypatch, options: dict, precision: str, rounding: float) -> None:
    model = tiny(weights, monkeypatch, precision=precision, steps=6)
    shake(model, 0.1)

    def update(first: int = 0, size: int = 2, **more: object) -> Tensor:
        for p in model.adapter.parameters():
            p.grad = None
        method = Nabla(beta=10.0, transitions=3, **options | more)
        prompts, times = PROMPTS[first : first + size], model.schedule.times(6)
        for step in method.losses(model, splats, times, prompts, streams(size, first)):
            step.loss.backward()
        return flat(model)

    want = update(merge=False)
    parts = (update(first=0, size=1) + update(first=1, size=1)) / 2
    assert want.isfinite().all() and want.norm() > 0
    for got in (update(), parts, update(chunk=1)):
        assert (got - want).norm() < rounding * want.norm()
    assert (parts - update(first=0, size=1)).norm() > rounding * want.norm()
