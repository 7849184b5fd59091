"""Rewards with their gradients, some samples at a time: as if they had been taken at once, and nothing is held."""

import dataclasses
import re
import weakref
from collections.abc import Sequence

import pytest
import torch
from method_checks import F64, Recorder, flat, moved, streams
from torch import Tensor
from toy import PROMPTS, ToyModel, ToyScene, toy_score
from user_parts import Toy, redness

from align3d.diffusion.sampler import NonFiniteError
from align3d.loop import Loop, fit
from align3d.methods import scoring
from align3d.methods.ddpo import DDPO
from align3d.methods.draft import Draft
from align3d.methods.nabla import Nabla
from align3d.methods.refl import ReFL
from align3d.methods.scoring import Scored, scored
from align3d.rewards.score import Scorer
from align3d.rng import Streams
from align3d.scenes.cameras import CameraSampling
from align3d.timing import Split
from align3d.types import Method, Score, StepLoss, Views

FOUR = ["a red cat", "a red cat", "a blue dog", "a blue dog"]
METHODS = [
    ReFL(),
    ReFL(target=2.0),
    Draft(),
    Draft(last=2),
    Draft(copies=2),
    Draft(last=3, recompute=True),
    DDPO(inner_epochs=2),
    Nabla(beta=30.0),
    Nabla(beta=30.0, chunk=0),
    Nabla(beta=30.0, chunk=0, jacobian=True),
    Nabla(beta=30.0, gradient_at="x0"),
]


def name_of(method: Method) -> str:
    return type(method).__name__


def plain(model, score, x0, prompts, rng, method, places=None, scenes=0, max_norm=None) -> Scored:
    """All at once, and differentiated with the loss."""
    return Scored(score(model.decode(x0), prompts, rng), torch.zeros(len(x0), dtype=torch.bool))


def update(method: Method, score: Score = toy_score, group: int = 2, model: ToyModel | None = None) -> tuple:
    """The losses of a batch of four, with the gradient that they leave."""
    model = model or moved(cls=Recorder)
    losses = method.losses(model, score, model.schedule.times(6).to(model.dtype), FOUR, streams(4, group=group))
    done: list[StepLoss] = []
    for step in losses:
        step.loss.backward()
        done.append(step)
    return done, flat(model), model


@pytest.mark.parametrize("scenes", [1, 2, 3, 0])
@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_parts_give_the_values_and_gradients_of_the_whole(method: Method, scenes: int, monkeypatch) -> None:
    got, gradient, model = update(dataclasses.replace(method, scenes=scenes))
    reached = [eps.grad for eps in model.trained if eps.grad is not None]
    norms = torch.cat([grad.flatten(1).norm(dim=1) for grad in reached])
    assert len(norms) >= 4 and norms.isfinite().all() and (norms > 0).all()
    monkeypatch.setattr(scoring, "scored", plain)
    want, reference, _ = update(dataclasses.replace(method, scenes=0))
    torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-14)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-10, atol=1e-14)
        for name in theirs.metrics:
            torch.testing.assert_close(ours.metrics[name], theirs.metrics[name], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_one_part_is_decoded_at_a_time_and_gone_before_the_loss(method: Method) -> None:
    class Part(ToyScene):
        pass

    class Decoder(ToyModel):
        def decode(self, x0: Tensor) -> Part:
            assert not any(part() for part in alive)
            scene = Part(x0.tanh())
            sizes.append(len(x0))
            alive.append(weakref.ref(scene.latents))
            return scene

    alive: list[weakref.ref] = []
    sizes: list[int] = []
    model = Decoder(dtype=F64)
    losses = dataclasses.replace(method, scenes=3).losses(
        model, toy_score, model.schedule.times(6, F64), FOUR, streams(4, group=2)
    )
    for step in losses:
        assert not any(part() for part in alive)
        step.loss.backward()
    assert max(sizes) == 3 and set(sizes) <= {1, 2, 3}


class Comparing:
    """The reward against the mean of the group, in its standard deviations, which are constants."""

    whole_groups = True

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, scene: ToyScene, prompts: Sequence[str], rng: Streams) -> Tensor:
        self.sizes.append(len(prompts))
        reward = toy_score(scene, prompts, rng)
        groups = reward.detach().view(-1, rng.group)
        mean, std = groups.mean(1), groups.std(1)
        return (reward - mean.repeat_interleave(rng.group)) / std.repeat_interleave(rng.group)


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_parts_are_of_whole_groups_where_the_score_compares(method: Method, monkeypatch) -> None:
    results = {}
    for scenes in (1, 3, 4, 0):
        score = Comparing()
        _, results[scenes], _ = update(
            dataclasses.replace(method, scenes=scenes), Split(torch.zeros(())).score(score), group=2
        )
        assert not any(size % 2 for size in score.sizes) and (scenes == 0 or max(score.sizes) == scenes + scenes % 2)
    monkeypatch.setattr(scoring, "scored", plain)
    _, reference, _ = update(dataclasses.replace(method, scenes=0), Comparing(), group=2)
    assert reference.norm() > 0
    for gradient in results.values():
        torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-13)


def steep(scene: ToyScene, prompts: Sequence[str], rng: Streams) -> Tensor:
    """Every sample but those of the first prompt has a reward, and a gradient, that is 1e30 times as large."""
    return toy_score(scene, prompts, rng) * torch.tensor([1.0 if p == FOUR[0] else 1e30 for p in prompts])


@pytest.mark.parametrize("method", [Draft(), Draft(last=3), Draft(copies=2), ReFL()], ids=name_of)
def test_a_huge_gradient_is_cut_and_the_others_are_left_alone(method: Method) -> None:

    def by_sample(method: Method, score: Score) -> Tensor:
        """The gradients by the predictions of each sample."""
        _, _, model = update(method, score, model=Recorder(dtype=torch.float32))
        return torch.stack([eps.grad for eps in model.trained])

    free = by_sample(method, toy_score)
    loose = by_sample(dataclasses.replace(method, max_norm=1e9), toy_score)
    cut = by_sample(dataclasses.replace(method, max_norm=0.3), steep)  # a sample's own is 0.1
    assert torch.equal(loose, free)
    assert torch.equal(cut[:, :2], free[:, :2]) and (cut != 0).all()
    ratio = cut[:, 2:] / free[:, 2:]  # one factor for each sample and prediction: the direction stays
    for sample in ratio.flatten(0, 1):
        torch.testing.assert_close(sample / sample.flatten()[0], torch.ones_like(sample), rtol=1e-4, atol=0)


def test_the_limit_is_the_norm() -> None:
    x0 = torch.randn(4, 8, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    judged = [scored(ToyModel(), steep, x0, FOUR, streams(4), "x", max_norm=limit) for limit in (0.05, None)]
    cut, free = (torch.autograd.grad(one.reward.sum(), x0)[0] for one in judged)
    norms = cut.flatten(1).norm(dim=1)
    assert (free[:2].flatten(1).norm(dim=1) < 0.2).all()
    torch.testing.assert_close(norms[2:], torch.full((2,), 0.05))
    for i in range(4):
        similarity = torch.cosine_similarity(cut[i].double().flatten(), free[i].double().flatten(), dim=0)
        assert similarity == pytest.approx(1)
    torch.testing.assert_close(judged[0].reward, judged[1].reward)


def blind(scene: ToyScene, prompts: Sequence[str], rng: Streams) -> Tensor:
    """Does not see the first prompt's objects; a constant that has no graph, if there are no others."""
    rows = [
        toy_score(ToyScene(z[None]), [p], dataclasses.replace(rng, keys=rng.keys[i : i + 1]))[0]
        if p != FOUR[0]
        else torch.ones((), dtype=z.dtype)
        for i, (z, p) in enumerate(zip(scene.latents, prompts, strict=True))
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("scenes", [1, 3, 0])
@pytest.mark.parametrize("method", [m for m in METHODS if not isinstance(m, Nabla)], ids=name_of)
def test_samples_without_gradient_are_counted_and_named(method: Method, scenes: int) -> None:
    seen, gradient, _ = update(dataclasses.replace(method, scenes=scenes), blind)
    assert gradient.isfinite().all()
    if isinstance(method, DDPO):
        assert all(not step.dead for step in seen) and (gradient != 0).any()
        return
    assert [step.dead for step in seen] == [FOUR[:2]] * len(seen) and (gradient != 0).all()
    assert seen[-1].metrics["dead"] == 2 * len(seen)
    whole, _, _ = update(method)
    assert all(step.dead == [] for step in whole) and whole[-1].metrics["dead"] == 0


@pytest.mark.parametrize("options", [{}, {"chunk": 0}, {"gradient_at": "x0"}, {"scenes": 3}])
def test_nabla_names_a_sample_once_for_all_its_transitions(options: dict) -> None:
    def flat_for_one(scene: ToyScene, prompts: Sequence[str], rng: Streams) -> Tensor:
        live = torch.tensor([p != FOUR[0] for p in prompts], dtype=F64)
        return toy_score(scene, prompts, rng) * live

    steps, _, _ = update(Nabla(beta=30.0, **options), flat_for_one)
    assert all(step.dead == FOUR[:2] for step in steps) and steps[-1].metrics["dead"] == 4 * 2


def test_a_sample_above_the_target_is_not_dead() -> None:
    (step,), gradient, _ = update(ReFL(target=-9.0))
    assert step.dead == [] and step.metrics["dead"] == 0 and (gradient == 0).all()


@pytest.mark.parametrize("method", [Draft(), ReFL(), Nabla(beta=1.0)], ids=name_of)
def test_a_run_tells_of_them_once(method: Method, capsys) -> None:
    def half_blind(views: Views, prompts: Sequence[str]) -> Tensor:
        seen = torch.tensor([float(p != FOUR[0]) for p in prompts])
        return redness(views, prompts) * seen[:, None]

    score = Scorer(half_blind, CameraSampling(views=2, size=16))
    rows = fit(Toy().load(), method, score, PROMPTS, Loop(updates=4, batch_size=6), progress=False)
    assert sum(row["dead"] > 0 for row in rows) > 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"update \d: the reward has no gradient for [1-6] of 6 samples, with prompt 'a red cat'; ", line)


def root(scene: ToyScene, prompts: Sequence[str], rng: Streams) -> Tensor:
    """Finite for all, with an infinite slope for the last prompt."""
    z = scene.latents.flatten(1).mean(1)
    return torch.stack([value if p == FOUR[0] else (0 * value).sqrt() for value, p in zip(z, prompts, strict=True)])


@pytest.mark.parametrize("scenes", [1, 3, 0])
@pytest.mark.parametrize("method", [m for m in METHODS if not isinstance(m, DDPO)] + [ReFL(target=-9.0)], ids=name_of)
def test_an_infinite_slope_names_prompt_and_place_before_the_loss(method: Method, scenes: int) -> None:
    """Also of a sample that is above the target, and with a limit that would have hidden it."""
    where = r"at time 0\.\d+" if isinstance(method, Nabla) else "on a sample"
    for options in ({}, {"max_norm": 1.0}):
        method = dataclasses.replace(method, scenes=scenes, **options)
        model = ToyModel(dtype=F64)
        losses = method.losses(model, root, model.schedule.times(6, F64), FOUR, streams(4))
        with pytest.raises(NonFiniteError, match=f"^non-finite reward gradient for prompt 'a blue dog' {where}"):
            next(losses)


def test_a_reward_of_something_else_is_refused() -> None:
    own = torch.ones((), requires_grad=True)
    for score in (lambda *args: own * torch.ones(2), lambda *args: torch.ones(2)):
        x0 = torch.ones(2, 3, requires_grad=True)
        with pytest.raises(
            ValueError, match="x: the reward has no gradient: what it gives for 'a red cat' is detached"
        ):
            scored(ToyModel(), score, x0, PROMPTS, streams(), "x")
        with torch.no_grad():
            assert not scored(ToyModel(), score, x0, PROMPTS, streams(), "x").dead.any()


@pytest.mark.parametrize("split", [(4, 1), (2, 2), (1, 4)])
@pytest.mark.parametrize("method", [Nabla(beta=1.0, scenes=1), Draft(scenes=1), ReFL(scenes=2)], ids=name_of)
def test_how_a_batch_is_split_does_not_decide_whether_dead_samples_stop_it(method, split) -> None:
    """Some samples have a gradient and some none: the run goes on, and counts the same."""

    def half(scene, prompts, rng):
        alive = torch.tensor([prompt == FOUR[0] for prompt in prompts])
        return torch.where(alive, toy_score(scene, prompts, rng), 0.5)

    batch, parts = split
    loop = Loop(updates=1, batch_size=batch, accumulate=parts, warmup=0)
    (row,) = fit(ToyModel(), method, half, FOUR[1:3], loop, progress=False)
    assert row["dead"] == 3 * (method.transitions if isinstance(method, Nabla) else 1) and row["grad_norm"] > 0
