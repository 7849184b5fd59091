"""What distillation optimises: a scene of one kind, seen by a prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from align3d.types import Cameras, Look, Prior, Views

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from jaxtyping import Float, Int
    from torch import Tensor, nn

    from align3d.rng import Streams
    from align3d.types import CameraSampler, Cond, Scene


@dataclass(frozen=True)
class Shown:
    """Pictures as a scene: they are what every camera sees."""

    rgb: Float[Tensor, "B V 3 H W"]
    cameras: Cameras | None = None  # that they were taken with
    flat: bool = False  # whether there is nothing but them: no other side to be seen

    def render(
        self, cameras: Cameras, want: Sequence[str] = ("rgb",), background: Sequence[float] = (1.0, 1.0, 1.0)
    ) -> Views:
        """The pictures, with the cameras that they were taken with; `cameras` and `background` change nothing.

        Raises:
            ValueError: If something is wanted that pictures do not have.
        """
        lacking = [name for name in want if name != "rgb"]
        if lacking:
            raise ValueError(
                f"candidates are judged by what the prior paints, which has no {', '.join(lacking)}; use a reward of "
                f"pictures alone"
            )
        return Views(self.cameras or cameras, rgb=self.rgb)


class Trainable(Protocol):
    """A scene that trains, an nn.Module: scenes.splats.Splats, scenes.nerf.nerf.Nerf.

    Members that may be missing: refine, growing and tally, as of Subject.
    """

    def rates(self) -> dict[str, float]:
        """Learning rates of its kinds of parameters, by the first part of their names."""
        ...

    def shown(
        self, cameras: Cameras, rng: Streams, background: tuple[float, float, float]
    ) -> tuple[Float[Tensor, "B V 3 H W"], dict[str, Tensor]]:
        """What it shows in an update, one row per stream, and its own penalties, weighed. Gradient: to itself."""
        ...

    def scene(self) -> Any:
        """The scene as it is now, as of Subject; `to(device)` moves it."""
        ...

    def files(self) -> dict[str, Callable[[Path], None]]:
        """The files that it ends in, by name, each with what writes it there, whole or not at all.

        The first is read again to go on from. What is more work is done when it is written, and may be written beside
        the file, or left out with a line that says so.
        """
        ...


class Distilled:
    """A scene under a prior; a Subject.

    Args:
        scene: What trains; a Trainable.
        prior: What teaches; frozen, but for its adapter, which variational distillation trains along.
        cameras: From a batch's randomness to its cameras.
        background: RGB in [0, 1], behind the object.
        original: The scene that is edited, as it was; editing compares with it.
        made_of: Hashes of the files that the scene was made of, by name.
    """

    steps = 50  # of a sampler, which nobody asks for

    def __init__(
        self,
        scene: nn.Module,
        prior: Prior,
        cameras: CameraSampler,
        background: tuple[float, float, float] = (1.0, 1.0, 1.0),
        original: nn.Module | None = None,
        made_of: dict[str, str] | None = None,
    ) -> None:
        self.trained, self.prior, self.cameras, self.background = scene, prior, cameras, background
        self.original, self.made_of = original, made_of or {}
        self.adapter = Trained({"scene": scene, "phi": prior.adapter})
        self.schedule, self.latent_shape = prior.schedule, prior.latent_shape

    def groups(self) -> dict[str, dict[str, Any]]:
        """Learning rates of the kinds of the scene's parameters."""
        return {f"scene.{name}": {"lr": rate} for name, rate in self.trained.rates().items()}

    @property
    def growing(self) -> dict[str, int]:
        """The scene's parameters whose rows come and go, with the most rows that they may have."""
        return {f"scene.{name}": most for name, most in getattr(self.trained, "growing", {}).items()}

    def refine(self, rng: Streams, ramp: float) -> dict[str, Int[Tensor, "_"]]:
        """Let the scene change its rows between two updates; see Subject."""
        sources = self.trained.refine(rng, ramp) if hasattr(self.trained, "refine") else {}
        return {f"scene.{name}": source for name, source in sources.items()}

    def tally(self, average: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Let the scene take in what it has shown in an update; see Subject."""
        return self.trained.tally(average) if hasattr(self.trained, "tally") else {}

    def look(self, rng: Streams) -> Look:
        """What a group of views for each stream shows."""
        from align3d.scenes.cameras import to_device

        cameras = to_device(self.cameras(rng), next(self.trained.parameters()))
        rgb, penalties = self.trained.shown(cameras, rng, self.background)
        return Look(self.encoded(rgb, rng), cameras, penalties)

    def encoded(self, rgb: Float[Tensor, "B V 3 H W"], rng: Streams) -> Float[Tensor, "B V *L"]:
        """Latents of what is seen; where the prior draws them, with the same noise for the same streams."""
        if not getattr(self.prior, "draws", False):
            return self.prior.latents(rgb)
        return self.prior.latents(rgb, rng.normal("encoder", (rgb.shape[1], *self.latent_shape), like=rgb))

    @property
    def source(self) -> Callable[[Streams, Look], Float[Tensor, "B V *L"]] | None:
        """Gives the latents of the scene as it was, seen as in a look; None if it is not known."""
        return None if self.original is None else self._source

    def _source(self, rng: Streams, look: Look) -> Float[Tensor, "B V *L"]:
        import torch

        with torch.no_grad():
            return self.encoded(self.original.shown(look.cameras, rng, self.background)[0], rng)

    def scene(self) -> Any:
        """The scene as it is now, B = 1."""
        return self.trained.scene()

    def files(self) -> dict[str, Callable[[Path], None]]:
        """The files that the scene ends in, the main one first."""
        return self.trained.files()

    def encode(self, prompts: Sequence[str]) -> Cond:
        """As the prior."""
        return self.prior.encode(prompts)

    def predict(self, x: Tensor, t: Tensor, cond: Cond, cameras: Cameras | None) -> Tensor:
        """As the prior without its adapter."""
        with self.prior.reference():
            return self.prior.predict(x, t, cond, cameras)

    @property
    def phi(self) -> Callable[..., Tensor] | None:
        """The prior with its adapter, as `predict` is called, with a gradient to the adapter; None if it has none."""
        return None if self.prior.adapter is None else self.prior.predict

    def picture(self, latents: Tensor, cameras: Cameras | None, fast: bool = False) -> Scene:
        """What the prior decodes."""
        return Shown(self.prior.images(latents, fast), cameras)


@dataclass(frozen=True)
class Trained:
    """The parameters of several parts, by name: "scene.means" is that of the part "scene"."""

    parts: dict[str, Any]  # each with named_parameters(), or None

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All of them."""
        for part, held in self.parts.items():
            for name, parameter in held.named_parameters() if held is not None else ():
                yield f"{part}.{name}", parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        """All of them, without names."""
        return (parameter for _, parameter in self.named_parameters())
