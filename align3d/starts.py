"""Where an optimisation starts: the kinds of scene, each with its options."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from align3d.scenes.nerf.options import NerfOptions

if TYPE_CHECKING:
    from align3d.latent_pictures import LatentPictures
    from align3d.subjects import Distilled
    from align3d.types import CameraSampler, Prior

STARTS = {
    "gaussians": "align3d.starts:GaussianStart",
    "nerf": "align3d.starts:NerfStart",
    "picture": "align3d.starts:PictureStart",
}
MOST = 1 << 20  # Gaussians to begin with


@dataclass(frozen=True)
class GaussianStart:
    """3D Gaussians: a grey ball, or a .ply file, as a generator may have written it."""

    num: int = 2048  # Gaussians of the ball
    radius: float = 0.35  # of the ball, scene units; objects fill [-0.5, 0.5]^3
    opacity: float = 0.1  # of each Gaussian of the ball, 0 to 1
    start: Path | None = None  # .ply file to begin with instead

    def __post_init__(self) -> None:
        if not 1 <= self.num <= MOST:
            raise ValueError(f"scene.num must be 1 to {MOST}, got {self.num}")
        if not 0 < self.radius <= 100 or not 0 < self.opacity < 1:
            raise ValueError(
                f"scene.radius must be above 0 and at most 100, opacity between 0 and 1, got {self.radius} and "
                f"{self.opacity}"
            )

    def subject(
        self,
        prior: Prior,
        cameras: CameraSampler,
        background: tuple[float, float, float],
        seed: int,
        device: str,
    ) -> Distilled:
        """The scene under a prior.

        Args:
            prior: What teaches.
            cameras: From randomness to the cameras of training.
            background: RGB in [0, 1].
            seed: Of the ball.
            device: Where it is optimised.

        Raises:
            FileNotFoundError: If there is no such file to begin with.
            ValueError: If it is no scene.
        """
        from align3d.rng import stream
        from align3d.scenes.ply import read_ply
        from align3d.scenes.splats import Splats, ball
        from align3d.subjects import Distilled

        if self.start is None:
            begin = ball(self.num, self.radius, self.opacity, stream(seed, "start"))
        elif not self.start.is_file():
            raise FileNotFoundError(f"no scene file {self.start}; give a .ply file, such as `align3d sample` writes")
        else:
            begin = read_ply(self.start)
        original = None if self.start is None else Splats(begin).to(device).requires_grad_(False)  # to be edited
        return Distilled(Splats(begin).to(device), prior, cameras, background, original)


@dataclass(frozen=True)
class NerfStart(NerfOptions):
    """A neural radiance field: a soft ball, or a scene.safetensors that an earlier run wrote."""

    start: Path | None = None  # scene.safetensors to begin with instead, of a field of the same kind and size
    mesh: int = 128  # cells along a side of mesh.glb and mesh.obj (extra `mesh`), 0 to 512; 0 = none is written

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mesh <= 512:
            raise ValueError(f"scene.mesh must be 0 to 512, got {self.mesh}")

    def subject(
        self,
        prior: Prior,
        cameras: CameraSampler,
        background: tuple[float, float, float],
        seed: int,
        device: str,
    ) -> Distilled:
        """The scene under a prior; arguments and errors are those of GaussianStart."""
        from align3d.rng import stream
        from align3d.scenes.nerf.files import read_nerf
        from align3d.scenes.nerf.nerf import Nerf
        from align3d.subjects import Distilled
        from align3d.weights import NotItsWeights, require_keys

        options = NerfOptions(**{f.name: getattr(self, f.name) for f in fields(NerfOptions)})
        nerf = Nerf.begun(options, stream(seed, "start"), self.mesh)
        if self.start is not None:
            state = read_nerf(self.start).state_dict()
            try:
                require_keys(nerf, {name: tuple(value.shape) for name, value in state.items()})
            except NotItsWeights as error:
                raise ValueError(f"{self.start} is not of the kind and size that --scene says: {error}") from None
            nerf.load_state_dict(state)
        nerf = nerf.to(device)
        original = None if self.start is None else deepcopy(nerf).eval().requires_grad_(False)
        return Distilled(nerf, prior, cameras, background, original)


@dataclass(frozen=True)
class PictureStart:
    """A picture in the prior's latents, or as many views as --cameras.views: noise, or a picture to begin with."""

    start: Path | None = None  # .png, .jpg or .webp to begin with, all of it, at the size of the prior's pictures
    strength: float = 1.0  # standard deviation of the noise to begin with, without a picture

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 100:
            raise ValueError(f"scene.strength must be 0 to 100, got {self.strength}")

    def subject(
        self,
        prior: Prior,
        cameras: CameraSampler,
        background: tuple[float, float, float],
        seed: int,
        device: str,
    ) -> LatentPictures:
        """The latents under a prior; arguments and errors as those of GaussianStart."""
        import torch

        from align3d.latent_pictures import FIXED, LatentPictures, Latents
        from align3d.rewards.preprocess import resize
        from align3d.rng import stream
        from align3d.scenes.picture_files import read_picture

        views = cameras(FIXED).c2w.shape[1]
        if self.start is None:
            noise = torch.randn(1, views, *prior.latent_shape, generator=stream(seed, "start"))
            return LatentPictures(Latents(self.strength * noise).to(device), prior, cameras)
        picture = resize(read_picture(self.start, background)[None], prior.size).clamp(0, 1)
        with torch.no_grad():
            latents = prior.latents(picture[None].expand(1, views, -1, -1, -1).to(device))
        return LatentPictures(Latents(latents), prior, cameras)
