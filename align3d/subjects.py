"""What distillation optimises: a scene of one kind, seen by a prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from align3d.types import Cameras, Look, Prior, Views

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor, nn

    from align3d.rng import Streams
    from align3d.scenes.gaussians import Gaussians
    from align3d.scenes.splats import Splats
    from align3d.types import CameraSampler, Cond, Scene


@dataclass(frozen=True)
class Shown:
    """Pictures as a scene: they are what every camera sees."""

    rgb: Float[Tensor, "B V 3 H W"]
    cameras: Cameras | None = None  # that they were taken with

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


class Distilled:
    """3D Gaussians under a prior; a Subject.

    Args:
        scene: What trains.
        prior: What teaches; frozen.
        cameras: From a batch's randomness to its cameras.
        background: RGB in [0, 1], behind the object.
    """

    steps = 50  # of a sampler, which nobody asks for

    def __init__(
        self,
        scene: Splats,
        prior: Prior,
        cameras: CameraSampler,
        background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    ) -> None:
        self.adapter: nn.Module = scene
        self.prior, self.cameras, self.background = prior, cameras, background
        self.schedule, self.latent_shape = prior.schedule, prior.latent_shape

    def groups(self) -> dict[str, dict[str, Any]]:
        """Learning rates of the kinds of parameters, those that DreamGaussian ends with or keeps."""
        rates = {"means": 1e-3, "quats": 5e-3, "log_scales": 5e-3, "logit_opacities": 5e-2, "logit_colors": 1e-2}
        return {name: {"lr": rate} for name, rate in rates.items()}

    def look(self, rng: Streams) -> Look:
        """What a group of views for each stream shows."""
        from align3d.scenes.cameras import to_device

        cameras = to_device(self.cameras(rng), self.adapter.means)
        views = self.adapter(len(rng)).render(cameras, want=("rgb",), background=self.background)
        return Look(self.prior.latents(views.rgb), cameras)

    def scene(self) -> Gaussians:
        """The scene as it is now, B = 1."""
        return self.adapter(1)

    def encode(self, prompts: Sequence[str]) -> Cond:
        """As the prior."""
        return self.prior.encode(prompts)

    def predict(self, x: Tensor, t: Tensor, cond: Cond, cameras: Cameras | None) -> Tensor:
        """As the prior."""
        return self.prior.predict(x, t, cond, cameras)

    def picture(self, latents: Tensor, cameras: Cameras | None, fast: bool = False) -> Scene:
        """What the prior decodes."""
        return Shown(self.prior.images(latents, fast), cameras)
