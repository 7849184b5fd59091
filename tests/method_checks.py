"""What the tests of the methods have in common."""

from collections.abc import Mapping, Sequence

import pytest
import torch
import user_parts
from torch import Tensor
from toy import PROMPTS, ToyModel, ToyScene, toy_score

from align3d.diffusion.sampler import NonFiniteError
from align3d.loop import Loop, fit
from align3d.rewards.score import Scorer
from align3d.rng import Streams
from align3d.scenes.cameras import CameraSampling
from align3d.types import Method, Score

F64 = torch.float64


def streams(size: int = 2, first: int = 0, step: int = 0, group: int = 1) -> Streams:
    return Streams.batch(0, step, first, size, group)


def rows(prompts: Sequence[str], method: object, step: int = 0) -> Streams:
    """A stream per prompt, in groups as large as the method needs: one to follow a gradient, two to compare."""
    return streams(len(prompts), step=step, group=1 if method.needs_gradient else 2)


def moved(dtype: torch.dtype = F64, cls: type[ToyModel] = ToyModel, **options: object) -> ToyModel:
    """A toy that has left its reference."""
    model = cls(dtype=dtype, **options)
    with torch.no_grad():
        for i, p in enumerate(model.adapter.parameters()):
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=dtype))
    return model


def flat(model: ToyModel) -> Tensor:
    """The adapter's gradient, flat."""
    return torch.cat([p.grad.flatten() for p in model.adapter.parameters()]).clone()


def gradients(
    model: ToyModel,
    method: Method,
    rng: Streams,
    prompts: Sequence[str] = PROMPTS,
    steps: int = 10,
    score: Score = toy_score,
) -> Tensor:
    """The summed gradient of all losses, flat."""
    model.adapter.zero_grad()
    for step in method.losses(model, score, model.schedule.times(steps).to(model.dtype), prompts, rng):
        step.loss.backward()
    return flat(model)


class Recorder(ToyModel):
    """Keeps the predictions that carry a gradient."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.trained: list[Tensor] = []

    def predict(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        eps = super().predict(x, t, cond)
        if self.keeps(x, eps):
            eps.retain_grad()
            self.trained.append(eps)
        return eps

    def keeps(self, x: Tensor, eps: Tensor) -> bool:
        return eps.requires_grad

    def norms(self) -> Tensor:
        """Of the gradients that reached them, one per prediction and sample."""
        return torch.cat([eps.grad.flatten(1).norm(dim=1) for eps in self.trained])


class Rounded(ToyModel):
    """Samples in low precision, trains in full."""

    def predict(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        eps = super().predict(x, t, cond)
        return eps if torch.is_grad_enabled() or not self.adapted else eps.bfloat16().to(eps.dtype)


def plain(metrics: Mapping[str, object]) -> bool:
    """Whether all are single numbers without a graph."""
    return not any(torch.is_tensor(v) and (v.requires_grad or v.ndim) for v in metrics.values())


def train(method: Method, updates: int, prompts: Sequence[str] = PROMPTS, rate: float = 0.1) -> ToyModel:
    """The toy after some updates with Adam."""
    model = ToyModel()
    times = model.schedule.times(8)
    optimizer = torch.optim.Adam(model.adapter.parameters(), lr=rate)
    for step in range(updates):
        for loss in method.losses(model, toy_score, times, prompts, rows(prompts, method, step)):
            loss.loss.backward()
            if loss.update:
                optimizer.step()
                optimizer.zero_grad()
    return model


def check_batches_of_one_add_up(method: Method) -> None:
    """To a batch of two."""
    whole = gradients(moved(), method, streams())
    parts = [gradients(moved(), method, streams(1, first=i), PROMPTS[i : i + 1]) for i in range(2)]
    assert (whole != 0).all()
    torch.testing.assert_close(sum(parts) / 2, whole, rtol=1e-6, atol=1e-12)
    assert not torch.allclose(parts[0], parts[1])


def check_trains_in_the_loop(method: Method, reward: object, group: int = 1) -> list[dict[str, float]]:
    """Real scenes, cameras and rewards, and everything that the loop asks of a method; returns its rows."""
    model = user_parts.Toy().load()
    score = Scorer(reward, CameraSampling(views=3, size=16))
    rows = fit(model, method, score, PROMPTS, Loop(updates=3, batch_size=4, group=group), progress=False)
    assert all(p.abs().sum() > 0 for p in model.adapter.parameters())
    assert all(row["grad_norm"] > 0 and row["reward_std"] > 0 for row in rows)
    assert rows[0]["drift"] < rows[-1]["drift"]
    return rows


def check_a_nan_in_the_reward_names_the_prompt(method: Method, prompts: Sequence[str] = PROMPTS) -> None:
    model, bad = ToyModel(), prompts[-1]

    def broken(scene: ToyScene, prompts: Sequence[str], rng: Streams) -> Tensor:
        ruin = torch.tensor([float("nan") if prompt == bad else 1.0 for prompt in prompts])
        return scene.latents.flatten(1).mean(1) * ruin

    with pytest.raises(NonFiniteError, match=f"^non-finite reward for prompt '{bad}' on a sample$"):
        next(method.losses(model, broken, model.schedule.times(5), prompts, rows(prompts, method)))


def check_an_infinite_slope_names_the_prompt(method: Method) -> None:
    model = ToyModel()

    def steep(scene: ToyScene, prompts: Sequence[str], rng: Streams) -> Tensor:
        rows = [
            z.mean() if p == PROMPTS[0] else (0 * z.mean()).sqrt() for z, p in zip(scene.latents, prompts, strict=True)
        ]
        return torch.stack(rows)

    with pytest.raises(
        NonFiniteError, match=r"^non-finite reward gradient for prompt 'a blue dog' on a sample; .* slope"
    ):
        next(method.losses(model, steep, model.schedule.times(5), PROMPTS, streams()))


def check_scores_that_cannot_train_are_refused(method: Method) -> None:
    model = ToyModel()
    scores = {
        "shape": lambda scene, prompts, rng: scene.latents.flatten(1),
        "no gradient": lambda scene, prompts, rng: scene.latents.flatten(1).mean(1).detach(),
    }
    for word, score in scores.items():
        with pytest.raises(ValueError, match=word):
            next(method.losses(model, score, model.schedule.times(5), PROMPTS, streams()))


def check_broken_predictions_name_prompt_and_step(method: Method, step: int, prompts: Sequence[str] = PROMPTS) -> None:
    class Broken(ToyModel):
        def predict(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            eps = super().predict(x, t, cond)
            return torch.where((t < 0.3)[:, None, None] & (cond == cond[-1])[:, None, None], torch.nan, eps)

    model = Broken()
    with pytest.raises(NonFiniteError, match=f"^non-finite prediction for prompt '{prompts[-1]}' at step {step}$"):
        next(method.losses(model, toy_score, model.schedule.times(5), prompts, rows(prompts, method)))
