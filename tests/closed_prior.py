"""A prior whose distribution is known: a mixture of narrow Gaussians around templates, with its exact denoiser."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from align3d.diffusion.schedule import DiscreteVP, bcast
from align3d.rng import Streams
from align3d.scenes.cameras import pixel_rays
from align3d.types import Cameras, Look, Views

COLOURS = {"red": (0.8, -0.6, -0.6), "green": (-0.6, 0.7, -0.6), "blue": (-0.6, -0.4, 0.8)}
V, H, W = 3, 4, 5


def templates(dtype: torch.dtype) -> dict[str, Tensor]:
    """By colour, two templates (2, V, 3, H, W): a flat one, and one with a stripe that moves from view to view."""
    found = {}
    for name, colour in COLOURS.items():
        flat = torch.tensor(colour, dtype=dtype)[None, :, None, None].expand(V, 3, H, W).clone()
        striped = flat.clone()
        for v in range(V):
            striped[v, :, :, v] = 0.9
        found[name] = torch.stack([flat, striped])
    return found


class Phi(nn.Module):
    """What the adapter of a prior has learnt: latents are normal around `mean`."""

    def __init__(self, shape: tuple[int, ...], std: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(shape, dtype=dtype))
        self.std = std


@dataclass
class ClosedPrior:
    """Texts name colours; a text without one means any. Latents are 2 rgb - 1.

    With `phi` it has an adapter: outside of `reference()` it predicts as of normal latents of that deviation.
    """

    std: float = 0.3
    dtype: torch.dtype = torch.float64
    schedule: Any = field(default_factory=lambda: DiscreteVP(kind="scaled_linear", beta_start=0.00085, beta_end=0.012))
    views: int = V
    latent_shape: tuple[int, ...] = (3, H, W)
    size: int = H
    phi: float | None = None
    adapter: Phi | None = None
    rows: int = 0  # predicted so far
    adapted: bool = True

    def __post_init__(self) -> None:
        self.templates = templates(self.dtype)
        if self.phi is not None:
            self.adapter = Phi(self.latent_shape, self.phi, self.dtype)

    def encode(self, prompts):
        return [
            torch.cat([x for name, x in self.templates.items() if name in text or not any(c in text for c in COLOURS)])
            for text in prompts
        ]

    def predict(self, x: Tensor, t: Tensor, cond, cameras: Cameras | None = None) -> Tensor:
        self.rows += len(x)
        if self.adapter is not None and self.adapted:
            return self.learnt(x, t)
        return self.denoised(x, t, cond)

    def learnt(self, x: Tensor, t: Tensor) -> Tensor:
        a, b = (bcast(f(t.double()), x) for f in (self.schedule.alpha, self.schedule.sigma))
        return b * (x - a * self.adapter.mean) / (a**2 * self.adapter.std**2 + b**2)

    def denoised(self, x: Tensor, t: Tensor, known: list[Tensor]) -> Tensor:
        """The exact noise in each row, whose data are near one of the templates known for it."""
        mu = nn.utils.rnn.pad_sequence(known, batch_first=True)  # (R, K, V, 3, H, W)
        absent = torch.arange(mu.shape[1]) >= torch.tensor([len(each) for each in known])[:, None]
        a, b = self.schedule.alpha(t.double()).to(x), self.schedule.sigma(t.double()).to(x)
        variance = a**2 * self.std**2 + b**2
        far = (x[:, None] - bcast(a, mu) * mu).flatten(2).square().sum(2)
        weight = torch.softmax((-far / (2 * variance[:, None])).masked_fill(absent, -torch.inf), 1)
        mean = (bcast(weight, mu) * mu).sum(1)
        x0 = mean + bcast(a * self.std**2 / variance, x) * (x - bcast(a, x) * mean)
        return (x - bcast(a, x) * x0) / bcast(b, x)

    def latents(self, rgb: Tensor) -> Tensor:
        return 2 * rgb - 1

    def images(self, x0: Tensor, fast: bool = False) -> Tensor:
        return (x0 / 2 + 0.5).clamp(0, 1)

    @contextlib.contextmanager
    def reference(self):
        before, self.adapted = self.adapted, False
        try:
            with torch.no_grad():
                yield
        finally:
            self.adapted = before


@dataclass
class Pictures:
    """A scene that shows what it was given."""

    rgb: Tensor

    def render(self, cameras, want=("rgb",), background=(1.0, 1.0, 1.0)):
        return Views(cameras, rgb=self.rgb)


class Pixels(nn.Module):
    """As many scenes as there are rows, which are their own latents."""

    def __init__(self, rows: int, prior: ClosedPrior, views: int) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.zeros(rows, views, *prior.latent_shape, dtype=prior.dtype))
        self.phi = prior.adapter


class PixelSubject:
    """Latents under a prior; `original` is what is edited."""

    steps = 10

    def __init__(
        self, rows: int = 2, prior: ClosedPrior | None = None, views: int = V, original: Tensor | None = None
    ) -> None:
        self.prior = prior or ClosedPrior()
        self.schedule, self.latent_shape = self.prior.schedule, self.prior.latent_shape
        self.adapter = Pixels(rows, self.prior, views)
        self.source = None if original is None else lambda rng, look: original[: len(rng)]

    def look(self, rng: Streams) -> Look:
        return Look(self.adapter.z[: len(rng)])

    def encode(self, prompts):
        return self.prior.encode(prompts)

    def predict(self, x, t, cond, cameras):
        with self.prior.reference():
            return self.prior.predict(x, t, cond, cameras)

    @property
    def phi(self):
        return None if self.prior.adapter is None else self.prior.predict

    def picture(self, latents, cameras, fast=False):
        return Pictures(self.prior.images(latents))


def redness(scene, prompts, rng):
    """A score: how red, (B,)."""
    red, green, blue = scene.rgb.unbind(2)
    return (red - 0.5 * (green + blue)).mean((-3, -2, -1))


SHAPES = ((0.35, 0.35, 0.35), (0.2, 0.45, 0.2))  # half axes of ellipsoids around the origin, scene units
SOLID = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.8, 0.1), "blue": (0.1, 0.2, 0.9)}


class EllipsoidPrior(ClosedPrior):
    """The same in space: two shapes in three colours on white, seen by any cameras, by ray and ellipsoid."""

    def __init__(self, std: float = 0.35, size: int = 16, views: int = 4, phi: float | None = None) -> None:
        super().__init__(std=std, dtype=torch.float32, latent_shape=(3, size, size), phi=phi)
        self.views, self.size = views, size

    def encode(self, prompts):
        every = list(SOLID)
        return [[name for name in every if name in text or not any(c in text for c in every)] for text in prompts]

    def predict(self, x: Tensor, t: Tensor, cond, cameras: Cameras | None = None) -> Tensor:
        self.rows += len(x)
        if self.adapter is not None and self.adapted:
            return self.learnt(x, t)
        found = []
        for i, names in enumerate(cond):
            masks = self.masks(cameras, i)  # (shapes, V, 1, H, W)
            colours = torch.tensor([SOLID[name] for name in names])[:, None, None, :, None, None]
            mu = (masks * colours + 1 - masks).flatten(0, 1) * 2 - 1
            found.append(mu.to(x))
        return self.denoised(x, t, found)

    def masks(self, cameras: Cameras, row: int) -> Tensor:
        """Where each shape is seen, (shapes, V, 1, H, W)."""
        origin, direction = (x[row] for x in pixel_rays(cameras))
        found = []
        for axes in SHAPES:
            k = torch.tensor(axes)[:, None, None]
            o, d = (origin / k).expand_as(direction), direction / k
            a, b, c = (d * d).sum(1), (o * d).sum(1), (o * o).sum(1) - 1
            found.append((b * b - a * c > 0).float()[:, None])
        return torch.stack(found)

    def latents(self, rgb: Tensor) -> Tensor:
        return 2 * rgb - 1


@dataclass(frozen=True)
class Ellipsoids:
    """The prior in space, as the command line loads it."""

    std: float = 0.35  # of the templates
    size: int = 12  # side of the pictures

    def load(self, device="cpu"):
        return EllipsoidPrior(self.std, self.size)


def red(views, prompts):
    """How red each view is."""
    r, g, b = views.rgb.unbind(2)
    return (r - 0.5 * (g + b)).mean((-2, -1))
