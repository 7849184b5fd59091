"""DDPO against REINFORCE, its clip, its advantages, and that it climbs without a gradient of the reward."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from method_checks import (
    F64,
    Recorder,
    Rounded,
    check_a_nan_in_the_reward_names_the_prompt,
    check_broken_predictions_name_prompt_and_step,
    check_trains_in_the_loop,
    flat,
    gradients,
    moved,
    plain,
    streams,
    train,
)
from torch import Tensor
from toy import PROMPTS, ToyModel, ToyScene, toy_reward, toy_score

from align3d.diffusion.sampler import NonFiniteError, rollout
from align3d.diffusion.schedule import DiscreteVP, Flow
from align3d.diffusion.transition import ddim
from align3d.methods.ddpo import DDPO, advantages
from align3d.rewards.jpeg import JPEGCompress
from align3d.rng import Streams

CLIP = 1e-4
PAIRS = [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]


def log_probs(model: ToyModel, method: DDPO, times: Tensor, rng: Streams, traj: object) -> Tensor:
    """Mean log-likelihoods of the trained transitions, one transition and sample at a time, (B, N)."""
    rows = []
    for row, steps in enumerate(method.order(times, rng).tolist()):
        for k in steps:
            t, s, own = times[k].expand(1), times[k + 1].expand(1), slice(row, row + 1)
            eps = model.predict(traj.x[own, k], t, traj.cond[own])
            gaussian = ddim(model.schedule, traj.x[own, k], eps, t, s, method.eta)
            z = (traj.x[own, k + 1] - gaussian.mean) / gaussian.std
            rows.append((-0.5 * z**2 - gaussian.std.log()).mean() - 0.9189385332046727)
    return torch.stack(rows).reshape(len(traj.prompts), -1)


def sampled(model: ToyModel, method: DDPO, steps: int, rng: Streams) -> tuple[Tensor, object, Tensor]:
    times = model.schedule.times(steps, F64)
    with torch.no_grad():
        traj = rollout(model, PAIRS, times, rng, method.eta)
        reward = toy_score(model.decode(traj.x[:, -1]), PAIRS, method.cameras(rng))
    return times, traj, advantages(reward, rng.group)


@pytest.mark.parametrize("options", [{}, {"eta": 0.5}, {"final": True}, {"transitions": 0.5}, {"same_cameras": False}])
def test_first_pass_is_reinforce(options: dict[str, float]) -> None:
    model, method, rng = moved(), DDPO(**options), streams(4, group=2)
    times, traj, advantage = sampled(model, method, 7, rng)
    (-(advantage[:, None] * log_probs(model, method, times, rng, traj)).mean()).backward()
    reference = flat(model)
    torch.testing.assert_close(gradients(model, method, rng, PAIRS, 7), reference, rtol=1e-8, atol=1e-12)
    assert (reference != 0).all()


def passes(model: ToyModel, method: DDPO, rng: Streams, rate: float) -> list[tuple[Tensor, dict[str, float]]]:
    """Gradient and metrics of each pass, with a plain gradient step of the adapter after it."""
    found = []
    model.adapter.zero_grad()
    for step in method.losses(model, toy_score, model.schedule.times(7, F64), PAIRS, rng):
        step.loss.backward()
        if step.update:
            found.append((flat(model), {name: float(value) for name, value in step.metrics.items()}))
            with torch.no_grad():
                for p in model.adapter.parameters():
                    p.sub_(rate * p.grad)
            model.adapter.zero_grad()
    return found


def test_the_clip_stops_what_has_gone_far_enough() -> None:
    method, rng, rate = DDPO(inner_epochs=2, clip=CLIP), streams(4, group=2), 1.0
    (first, _), (second, metrics) = passes(moved(), method, rng, rate)

    model = moved()  # the same by hand
    times, traj, advantage = sampled(model, method, 7, rng)
    old = log_probs(model, method, times, rng, traj).detach()
    with torch.no_grad():
        start = 0
        for p in model.adapter.parameters():
            p.sub_(rate * first[start : start + p.numel()].reshape(p.shape))
            start += p.numel()
    ratio = (log_probs(model, method, times, rng, traj) - old).exp()
    a = advantage[:, None].expand_as(ratio)
    stopped = ((a > 0) & (ratio > 1 + CLIP)) | ((a < 0) & (ratio < 1 - CLIP))
    assert stopped.any() and not stopped.all() and ((ratio - 1).abs() > CLIP)[~stopped].any()
    (-(a * ratio)[~stopped].sum() / ratio.numel()).backward()
    torch.testing.assert_close(second, flat(model), rtol=1e-6, atol=1e-12)
    off = ((ratio - 1).abs() > CLIP).double().mean()
    assert metrics["clipped"] == pytest.approx(float(off))
    assert (metrics["ratio_min"], metrics["ratio_max"]) == pytest.approx(
        (float(ratio.detach().min()), float(ratio.detach().max()))
    )
    assert metrics["approx_kl"] == pytest.approx(float((ratio - 1 - ratio.log()).mean()), rel=1e-6)


def test_a_far_step_stops_everything_that_it_helped() -> None:
    loose, tight = (passes(moved(), DDPO(inner_epochs=2, clip=clip), streams(4, group=2), 1.0) for clip in (1.0, 1e-6))
    assert tight[1][0].norm() < loose[1][0].norm() and tight[1][1]["clipped"] > 0.9


def test_rounding_while_sampling_is_no_change_of_policy() -> None:
    (_, first), (_, second) = passes(moved(cls=Rounded), DDPO(inner_epochs=2), streams(4, group=2), 0.0)
    for metrics in (first, second):
        assert metrics["ratio_min"] == metrics["ratio_max"] == 1 and metrics["clipped"] == metrics["approx_kl"] == 0


def test_advantages_compare_samples_of_a_group() -> None:
    reward = torch.tensor([1.0, 3.0, 5.0, 100.0, 104.0, 108.0])
    one = torch.tensor([-(1.5**0.5), 0.0, 1.5**0.5])
    torch.testing.assert_close(advantages(reward, 3), one.repeat(2), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(advantages(reward, 2)[2:4], torch.tensor([-1.0, 1.0]), rtol=1e-5, atol=1e-6)


def test_equal_rewards_teach_nothing() -> None:
    assert (advantages(torch.full((3,), 0.1), 3) == 0).all()  # 0.1 and thirds are not exact in float32
    model = ToyModel()
    got = gradients(model, DDPO(), streams(4, group=2), PAIRS, score=lambda scene, prompts, rng: torch.full((4,), 0.1))
    assert (got == 0).all()


def test_large_advantages_are_cut() -> None:
    model, rng = ToyModel(dtype=F64), streams(3, group=3)
    plain, cut = (gradients(model, DDPO(advantage_max=m), rng, PROMPTS[:1] * 3) for m in (5.0, 0.1))
    assert cut.norm() < 0.2 * plain.norm() and (cut != 0).all()


def seen(method: DDPO, prompts: Sequence[str]) -> list[float]:
    """A number per sample that stands for its cameras."""
    found: list[float] = []

    def score(scene: ToyScene, prompts: Sequence[str], rng: Streams) -> Tensor:
        assert not scene.latents.requires_grad and not torch.is_grad_enabled()
        found.extend(rng.uniform("camera").tolist())
        return toy_score(scene, prompts, rng).round(decimals=3)

    next(method.losses(ToyModel(), score, DiscreteVP().times(5), prompts, streams(len(prompts), group=2)))
    return found


def test_samples_of_a_prompt_are_seen_from_the_same_cameras() -> None:
    assert not DDPO.needs_gradient
    a, b, c, d = seen(DDPO(), PAIRS)
    assert a == b != c == d
    assert len(set(seen(DDPO(same_cameras=False), PAIRS))) == 4


@pytest.mark.parametrize("chunk", [0, 1, 3])
def test_chunks_add_up_to_the_same_update(chunk: int) -> None:
    method, model, rng = DDPO(chunk=4, kl=0.2), moved(), streams(4, group=2)
    other = dataclasses.replace(method, chunk=chunk)
    torch.testing.assert_close(gradients(model, other, rng, PAIRS), gradients(model, method, rng, PAIRS))
    times = model.schedule.times(10, F64)
    steps = list(other.losses(model, toy_score, times, PAIRS, rng))
    assert [s.update for s in steps] == [False] * (len(steps) - 1) + [True] and len(steps) == -(-9 // (chunk or 9))
    assert all(not s.metrics for s in steps[:-1])
    want = list(method.losses(model, toy_score, times, PAIRS, rng))[-1].metrics
    for name in set(want) - {"drift"}:  # which is that of the last chunk
        torch.testing.assert_close(steps[-1].metrics[name], want[name], msg=name)


@pytest.mark.parametrize("options", [{}, {"transitions": 0.4}, {"kl": 0.3}])
def test_batches_split_between_groups_add_up(options: dict[str, float]) -> None:
    method = DDPO(**options)
    whole = gradients(moved(), method, streams(4, group=2), PAIRS)
    parts = [gradients(moved(), method, streams(2, first=i, group=2), PAIRS[i : i + 2]) for i in (0, 2)]
    torch.testing.assert_close(sum(parts) / 2, whole, rtol=1e-6, atol=1e-12)
    assert not torch.allclose(parts[0], parts[1])


@pytest.mark.parametrize("schedule", [DiscreteVP(), Flow()])
@pytest.mark.parametrize("steps", [2, 20])
def test_every_sample_gets_a_gradient(schedule: object, steps: int) -> None:
    model = Recorder(schedule=schedule)
    assert (gradients(model, DDPO(), streams(group=2), PROMPTS[:1] * 2, steps) != 0).all()
    norms = model.norms()
    assert len(norms) == 2 * (steps - 1) and norms.isfinite().all() and (norms > 0).all()


def test_every_transition_is_drawn_once_and_never_the_last() -> None:
    times = DiscreteVP().times(10)
    order = DDPO().order(times, streams(5))
    assert torch.equal(order.sort(1).values, torch.arange(9).expand(5, 9)) and not torch.equal(order[0], order[1])
    assert torch.equal(order[3:], DDPO().order(times, streams(2, first=3)))
    assert DDPO(transitions=0.5).order(times, streams()).shape == (2, 4)
    assert DDPO(transitions=0.01).order(times, streams()).shape == (2, 1)
    assert DDPO(final=True).order(times, streams()).max() == 9


def test_divergence_from_the_reference() -> None:
    model, rng, method = moved(), streams(4, group=2), DDPO(kl=1.0)
    times, traj, _ = sampled(model, method, 7, rng)
    want = []
    for row, steps in enumerate(method.order(times, rng).tolist()):
        for k in steps:
            t, s, own = times[k].expand(1), times[k + 1].expand(1), slice(row, row + 1)
            means = []
            for adapted in (True, False):
                model.adapted = adapted
                eps = model.predict(traj.x[own, k], t, traj.cond[own])
                means.append(ddim(model.schedule, traj.x[own, k], eps, t, s, 1.0))
            model.adapted = True
            a, b = (torch.distributions.Normal(g.mean, g.std) for g in means)
            want.append(torch.distributions.kl_divergence(a, b).mean())
    steps = list(method.losses(model, toy_score, times, PAIRS, rng))
    torch.testing.assert_close(steps[-1].metrics["kl"], torch.stack(want).mean().detach())
    assert "kl" not in list(DDPO().losses(model, toy_score, times, PAIRS, rng))[-1].metrics
    pull = gradients(model, method, rng, PAIRS, 7) - gradients(model, DDPO(), rng, PAIRS, 7)
    torch.stack(want).mean().backward()  # after the zeroing in `gradients`, its own gradient is left on top
    torch.testing.assert_close(flat(model) - gradients(model, DDPO(), rng, PAIRS, 7), pull)


def test_metrics() -> None:
    model, rng = moved(), streams(4, group=2)
    times = model.schedule.times(7, F64)
    step = list(DDPO().losses(model, toy_score, times, PAIRS, rng))[-1]
    with torch.no_grad():
        x0 = rollout(model, PAIRS, times, rng).x[:, -1]
        want = toy_score(model.decode(x0), PAIRS, DDPO().cameras(rng))
    torch.testing.assert_close(step.metrics["reward"], want.mean())
    torch.testing.assert_close(step.metrics["reward_std"], want.std(correction=0))
    assert step.metrics["drift"] > 0 and step.metrics["dead"] == 0
    assert plain(step.metrics)
    assert list(DDPO().losses(ToyModel(), toy_score, times.float(), PAIRS, rng))[-1].metrics["drift"] == 0
    assert "drift" not in list(DDPO(track_drift=False).losses(model, toy_score, times, PAIRS, rng))[-1].metrics


@pytest.mark.parametrize("method", [DDPO(), DDPO(inner_epochs=2, transitions=0.5)])
def test_reward_rises_on_held_out_seeds(method: DDPO) -> None:
    assert toy_reward(train(method, 8, PAIRS * 2)) > toy_reward(ToyModel()) + 0.2


def test_trains_in_the_loop_on_a_reward_without_gradient() -> None:
    for method in (DDPO(), DDPO(inner_epochs=2, kl=0.1, chunk=2)):
        rows = check_trains_in_the_loop(method, JPEGCompress(), group=2)
        assert all(row["reward"] < -0.3 for row in rows)  # kilobytes


def test_what_is_not_finite_names_the_prompt() -> None:
    check_a_nan_in_the_reward_names_the_prompt(DDPO(), PAIRS)
    check_broken_predictions_name_prompt_and_step(DDPO(), step=4, prompts=PAIRS)

    class Late(ToyModel):
        def predict(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            eps = super().predict(x, t, cond)
            return eps * torch.where(cond == cond[0], torch.inf, 1)[:, None, None] if eps.requires_grad else eps

    with pytest.raises(NonFiniteError, match=r"^non-finite likelihood ratio for prompt 'a red cat' at step \d$"):
        next(DDPO().losses(Late(), toy_score, DiscreteVP().times(5), PAIRS, streams(4, group=2)))


@pytest.mark.parametrize(
    "method, size, steps, schedule, word",
    [
        (DDPO(), 1, 5, DiscreteVP(), "group of 1"),
        (DDPO(), 2, 1, DiscreteVP(), "more steps"),
        (DDPO(final=True), 2, 5, Flow(), "noise left"),
    ],
)
def test_what_cannot_train_is_refused(method: DDPO, size: int, steps: int, schedule: object, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        next(
            method.losses(
                ToyModel(schedule=schedule),
                toy_score,
                schedule.times(steps),
                PROMPTS[:1] * size,
                streams(size, group=size),
            )
        )


def test_scores_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        next(
            DDPO().losses(
                ToyModel(), lambda s, p, r: s.latents.flatten(1), DiscreteVP().times(5), PAIRS, streams(4, group=2)
            )
        )


BAD = [("clip", 0.0), ("clip", 2.0), ("advantage_max", 0.0), ("transitions", 0.0), ("transitions", 1.5), ("eta", 0.0)]
BAD += [("inner_epochs", 0), ("chunk", -1), ("kl", -1.0), ("kl", float("nan"))]


@pytest.mark.parametrize("name, value", BAD)
def test_bad_options_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        DDPO(**{name: value})
