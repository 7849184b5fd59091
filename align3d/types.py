"""The values that flow through the library, in order of appearance, and the protocols of the parts that make them.

Conventions (axes, frames, units, time) are stated once, in scenes/cameras.py.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.rng import Streams

Cond = Any  # what a base model's `encode` returns; opaque to everyone else

CHANNELS = ("rgb", "alpha", "depth", "median_depth", "normal")  # what a scene can be asked to render


@dataclass(frozen=True)
class Cameras:
    """A batch of pinhole cameras: V for each of B scenes."""

    c2w: Float[Tensor, "B V 4 4"]  # camera to world, OpenCV camera axes
    K: Float[Tensor, "B V 3 3"]  # intrinsics in pixels, origin at the top-left corner, pixel centres at +0.5
    height: int
    width: int


@dataclass(frozen=True)
class Views:
    """What the cameras see. A field that was not asked for is None."""

    cameras: Cameras
    rgb: Float[Tensor, "B V 3 H W"] | None = None  # in [0, 1], composited on the background
    alpha: Float[Tensor, "B V 1 H W"] | None = None  # in [0, 1]
    depth: Float[Tensor, "B V 1 H W"] | None = None  # expected camera z over what is hit; 0 where nothing is
    median_depth: Float[Tensor, "B V 1 H W"] | None = None  # camera z where half of the light is gone
    normal: Float[Tensor, "B V 3 H W"] | None = None  # unit, world frame, facing the camera; 0 where nothing is

    def require(self, *names: str, by: str) -> None:
        """Check that the named fields are there.

        Args:
            *names: Field names, as in CHANNELS.
            by: Who needs them; named in the error.

        Raises:
            ValueError: If one is None.
        """
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            have = [f.name for f in fields(self) if f.name in CHANNELS and getattr(self, f.name) is not None]
            raise ValueError(
                f"{by} needs views with {', '.join(missing)}, got only {', '.join(have) or 'nothing'}; "
                f"use a scene that can render it and ask for it with scene.render(cameras, want=...)"
            )


@dataclass(frozen=True)
class Rollout:
    """One sampled trajectory of the reverse process, noise to data, for each of B prompts."""

    prompts: Sequence[str]
    cond: Cond
    times: Float[Tensor, "T"]  # T = K + 1, descending, in [0, 1]; 0 = data
    x: Float[Tensor, "B T *L"]  # x[:, k] is the state at times[k]
    eps: Float[Tensor, "B K *L"]  # the prediction that led from x[:, k] to x[:, k + 1]

    def __len__(self) -> int:
        return self.times.numel() - 1


@dataclass(frozen=True)
class StepLoss:
    """One graph to run backwards; the loop sums gradients until `update` says to step."""

    loss: Tensor  # scalar
    metrics: dict[str, Any]  # scalars to log
    update: bool = True  # whether the optimiser steps after this loss


@runtime_checkable
class Scene(Protocol):
    """Anything that can be looked at."""

    def render(
        self, cameras: Cameras, want: Sequence[str] = ("rgb", "alpha"), background: Sequence[float] = (1.0, 1.0, 1.0)
    ) -> Views: ...


@runtime_checkable
class BaseModel(Protocol):
    """A text-to-3D generator; parametrisation, guidance and layout stay inside."""

    schedule: Any  # a diffusion.schedule.Schedule that has times(steps) as well
    steps: int  # of sampling
    latent_shape: tuple[int, ...]
    adapter: Any  # parameters() and named_parameters() as of an nn.Module, all of them trainable

    def encode(self, prompts: Sequence[str]) -> Cond: ...

    def predict(self, x: Float[Tensor, "B *L"], t: Float[Tensor, "B"], cond: Cond) -> Float[Tensor, "B *L"]: ...

    def decode(self, x0: Float[Tensor, "B *L"]) -> Scene: ...

    def reference(self) -> AbstractContextManager[None]: ...


@runtime_checkable
class Reward(Protocol):
    """Scores views of scenes; higher is better."""

    differentiable: bool
    needs: frozenset[str]  # fields of Views

    def __call__(self, views: Views, prompts: Sequence[str]) -> Float[Tensor, "B V"]: ...


@runtime_checkable
class Score(Protocol):
    """Scene to one number: cameras, rendering, reward and the mean over views, closed over."""

    def __call__(self, scene: Scene, prompts: Sequence[str], rng: Streams) -> Float[Tensor, "B"]: ...


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass of hyperparameters with one generator of losses."""

    needs_gradient: bool  # whether the reward must be differentiable

    def losses(
        self, model: BaseModel, score: Score, times: Float[Tensor, "T"], prompts: Sequence[str], rng: Streams
    ) -> Iterator[StepLoss]: ...


if TYPE_CHECKING:
    CameraSampler = Callable[[Streams], Cameras]
