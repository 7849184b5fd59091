"""A base model whose data distribution, optimal denoiser and best adapter are known in closed form."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from align3d.diffusion.sampler import rollout
from align3d.diffusion.schedule import DiscreteVP, bcast
from align3d.rng import Streams

PROMPTS = ["a red cat", "a blue dog"]  # B = 2 on purpose


@dataclass(frozen=True)
class ToyScene:
    """What the toy decodes to: its latents, (B, *L)."""

    latents: Tensor


class ToyAdapter(nn.Module):
    """A shift of the mean that depends on the prompt; zero at first. Element by element, so rows never mix."""

    def __init__(self, channels: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(channels, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(channels, dtype=dtype))

    def forward(self, feature: Tensor) -> Tensor:
        return feature[:, None] * self.slope + self.bias


class ToyModel:
    """Data ~ N(mu(prompt), std^2); `predict` is the optimal denoiser of that, plus the adapter's shift of mu.

    A method works if and only if it moves mu uphill. Encode gives (B,) features in [-0.5, 0.5], so conditions of
    several batches can be concatenated.
    """

    def __init__(
        self,
        latent_shape: tuple[int, ...] = (8, 6),
        std: float = 0.5,
        schedule: Any = None,
        dtype: torch.dtype = torch.float32,
        steps: int = 20,
    ) -> None:
        self.latent_shape = latent_shape
        self.steps = steps
        self.std = std
        self.schedule = schedule or DiscreteVP()
        self.adapter = ToyAdapter(latent_shape[0], dtype)
        self.dtype = dtype
        self.adapted = True
        self.calls = 0  # number of predictions, for tests that count work

    def encode(self, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([sum(map(ord, p)) % 97 / 97 - 0.5 for p in prompts], dtype=self.dtype)

    def mean(self, cond: Tensor) -> Tensor:
        """The mean of the data, (B, C, 1, ...)."""
        base = cond[:, None].expand(-1, self.latent_shape[0])
        mu = base + self.adapter(cond) if self.adapted else base
        return mu.reshape(*mu.shape, *[1] * (len(self.latent_shape) - 1))

    def predict(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        assert t.shape == cond.shape == x.shape[:1]
        self.calls += 1
        a, b = bcast(self.schedule.alpha(t.double()), x), bcast(self.schedule.sigma(t.double()), x)
        return b * (x - a * self.mean(cond)) / (a**2 * self.std**2 + b**2)

    def decode(self, x0: Tensor) -> ToyScene:
        return ToyScene(x0)

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        before, self.adapted = self.adapted, False
        try:
            with torch.no_grad():
                yield
        finally:
            self.adapted = before


def toy_score(scene: ToyScene, prompts: Sequence[str], rng: Streams) -> Tensor:
    """Bounded, rises with every latent, (B,); a random camera per sample weighs the latents by 0.5 to 1.5."""
    z = scene.latents
    assert len(prompts) == len(rng) == len(z)
    camera = 0.5 + rng.uniform("camera", tuple(z.shape[1:]), like=z)
    return (camera * z.tanh()).flatten(1).mean(1)


def toy_reward(model: ToyModel, prompts: Sequence[str] = PROMPTS, seeds: int = 32, steps: int = 20) -> float:
    """Mean score of samples from seeds that no training uses."""
    prompts = list(prompts) * seeds
    rng = Streams.batch(987_654, 0, 0, len(prompts))
    with torch.no_grad():
        traj = rollout(model, prompts, model.schedule.times(steps).to(model.dtype), rng, keep=False)
        return float(toy_score(model.decode(traj.x[:, -1]), prompts, rng).mean())
