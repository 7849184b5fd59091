"""Where an optimisation starts: the kinds of scene, each with its options."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from align3d.files import digest
from align3d.scenes.density.base import Density
from align3d.scenes.nerf.options import NerfOptions

if TYPE_CHECKING:
    from align3d.latent_pictures import LatentPictures
    from align3d.scenes.gaussians import Gaussians
    from align3d.subjects import Distilled
    from align3d.types import CameraSampler, Prior, Subject

STARTS = {
    "gaussians": "align3d.starts:GaussianStart",
    "nerf": "align3d.starts:NerfStart",
    "picture": "align3d.starts:PictureStart",
}
MOST = 1 << 20  # Gaussians to begin with
EMBEDDED = Path("embedded")  # as a start: what the shipped generator makes of the prompt
PARTS = ("means", "quats", "scales", "opacities", "colors")  # of Gaussians
FAINT = 0.01  # opacity of Gaussians that are left out of that: most of a generator's hold nothing


@dataclass(frozen=True)
class Stage:
    """What the start of a scene is told of the run."""

    prior: Prior  # what teaches
    cameras: CameraSampler  # from randomness to the cameras of training
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)  # RGB in [0, 1]
    prompt: str = ""  # what is to be made
    seed: int = 0  # of what is random at the start
    device: str = "cpu"  # where the scene is optimised


@runtime_checkable
class Start(Protocol):
    """A kind of scene with its options, a frozen dataclass; those of STARTS are some.

    Members that may be missing: inputs(), hashes of the files that the scene is made of, by name; the subject has them
    as `made_of`.
    """

    def subject(self, stage: Stage) -> Subject:
        """What is to be optimised, on the device of the stage, with `scene` and `files`; a subjects.Distilled will do.

        It is called once for each prompt and start, also before a run goes on: whatever is random comes from the seed.

        Raises:
            FileNotFoundError, ValueError: One line, if the scene cannot begin like that.
        """
        ...


def content(start: Path | None) -> dict[str, str]:
    """What tells the file of --scene.start from others; nothing where there is none."""
    return {"start_blake2b": digest(start)} if start is not None and start.is_file() else {}


@dataclass(frozen=True)
class GaussianStart:
    """3D Gaussians: a grey ball, a .ply file, or what the shipped generator makes of the prompt."""

    num: int = 2048  # Gaussians of the ball
    radius: float = 0.35  # of the ball, scene units; objects fill [-0.5, 0.5]^3
    opacity: float = 0.1  # of each Gaussian of the ball, 0 to 1
    start: Path | None = None  # .ply file to begin with instead; embedded = a sample of the shipped generator
    density: Density = field(default_factory=Density)  # how they become more and fewer

    parts: ClassVar[dict[str, str]] = {"density": "none"}

    def __post_init__(self) -> None:
        if not 1 <= self.num <= MOST:
            raise ValueError(f"scene.num must be 1 to {MOST}, got {self.num}")
        if not 0 < self.radius <= 100 or not 0 < self.opacity < 1:
            raise ValueError(
                f"scene.radius must be above 0 and at most 100, opacity between 0 and 1, got {self.radius} and "
                f"{self.opacity}"
            )

    def inputs(self) -> dict[str, str]:
        """The hash of the file to begin with, if there is one: a run that goes on has to begin with the same."""
        return {} if self.start == EMBEDDED else content(self.start)

    def subject(self, stage: Stage) -> Distilled:
        """The scene under a prior.

        Raises:
            FileNotFoundError: If there is no such file to begin with.
            ValueError: If it is no scene, or one of more Gaussians than `density` allows.
        """
        from align3d.scenes.splats import Splats
        from align3d.subjects import Distilled

        begin = self.begin(stage)
        original = None if self.start is None else Splats(begin).to(stage.device).requires_grad_(False)  # to be edited
        scene = Splats(begin, self.density).to(stage.device)
        return Distilled(scene, stage.prior, stage.cameras, stage.background, original, self.inputs())

    def begin(self, stage: Stage) -> Gaussians:
        """The Gaussians to begin with, B = 1, on the CPU; arguments and errors as of `subject`."""
        from align3d.rng import stream
        from align3d.scenes.ply import read_ply
        from align3d.scenes.splats import ball

        if self.start is None:
            return ball(self.num, self.radius, self.opacity, stream(stage.seed, "start"))
        if self.start == EMBEDDED:
            return generated(stage)
        if not self.start.is_file():
            raise FileNotFoundError(
                f"no scene file {self.start}; give a .ply file, such as `align3d sample` writes, or `embedded`"
            )
        return read_ply(self.start)


def generated(stage: Stage) -> Gaussians:
    """What the shipped generator makes of the prompt with the seed, as `align3d sample` does; less what is faint.

    Raises:
        ValueError: If that is nothing.
    """
    from align3d.generate import generate
    from align3d.models.embedded import Embedded

    scene = next(generate(Embedded().load(stage.device), [stage.prompt], [stage.seed])).scene.to("cpu")
    solid = scene.opacities[0] > FAINT
    if not bool(solid.any()):
        raise ValueError(f"the shipped generator makes nothing of {stage.prompt!r}; begin with another --scene.start")
    return replace(scene, **{name: getattr(scene, name)[:, solid] for name in PARTS})


@dataclass(frozen=True)
class NerfStart(NerfOptions):
    """A neural radiance field: a soft ball, or a scene.safetensors that an earlier run wrote."""

    start: Path | None = None  # scene.safetensors to begin with instead, of a field of the same kind and size
    mesh: int = 128  # cells along a side of mesh.glb and mesh.obj (extra `mesh`), 0 to 512; 0 = none is written

    texture: int = 1024  # side of the picture on the mesh, pixels, 16 to 4096; 0 = colours at its vertices instead

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mesh <= 512:
            raise ValueError(f"scene.mesh must be 0 to 512, got {self.mesh}")
        if self.texture and not 16 <= self.texture <= 4096:
            raise ValueError(f"scene.texture must be 16 to 4096 pixels, or 0, got {self.texture}")

    def inputs(self) -> dict[str, str]:
        """The hash of the file to begin with, if there is one: a run that goes on has to begin with the same."""
        return content(self.start)

    def subject(self, stage: Stage) -> Distilled:
        """The scene under a prior; errors are those of GaussianStart."""
        from align3d.rng import stream
        from align3d.scenes.nerf.files import read_nerf
        from align3d.scenes.nerf.nerf import Nerf
        from align3d.subjects import Distilled
        from align3d.weights import NotItsWeights, require_keys

        options = NerfOptions(**{f.name: getattr(self, f.name) for f in fields(NerfOptions)})
        nerf = Nerf.begun(options, stream(stage.seed, "start"), self.mesh, self.texture)
        if self.start is not None:
            state = read_nerf(self.start).state_dict()
            try:
                require_keys(nerf, {name: tuple(value.shape) for name, value in state.items()})
            except NotItsWeights as error:
                raise ValueError(f"{self.start} is not of the kind and size that --scene says: {error}") from None
            nerf.load_state_dict(state)
        nerf = nerf.to(stage.device)
        original = None if self.start is None else deepcopy(nerf).eval().requires_grad_(False)
        return Distilled(nerf, stage.prior, stage.cameras, stage.background, original, self.inputs())


@dataclass(frozen=True)
class PictureStart:
    """A picture in the prior's latents, or as many views as --cameras.views: noise, or a picture to begin with."""

    start: Path | None = None  # square .png, .jpg or .webp to begin with; brought to the prior's size
    strength: float = 1.0  # standard deviation of the noise to begin with, without a picture
    rate: float = 0.01  # learning rate of the latents

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 10:
            raise ValueError(f"scene.rate must be 0 to 10, got {self.rate}")
        if not 0 <= self.strength <= 100:
            raise ValueError(f"scene.strength must be 0 to 100, got {self.strength}")

    def inputs(self) -> dict[str, str]:
        """The hash of the file to begin with, if there is one: a run that goes on has to begin with the same."""
        return content(self.start)

    def subject(self, stage: Stage) -> LatentPictures:
        """The latents under a prior; errors are those of GaussianStart."""
        import torch

        from align3d.latent_pictures import FIXED, LatentPictures, Latents, picture_of
        from align3d.rng import stream

        prior, cameras = stage.prior, stage.cameras
        views = cameras(FIXED).c2w.shape[1]
        if self.start is None:
            noise = torch.randn(1, views, *prior.latent_shape, generator=stream(stage.seed, "start"))
            return LatentPictures(Latents(self.strength * noise, self.rate).to(stage.device), prior, cameras)
        picture = picture_of(self.start, prior.size, stage.background)
        with torch.no_grad():
            latents = prior.latents(picture.expand(1, views, -1, -1, -1).to(stage.device))
        return LatentPictures(Latents(latents, self.rate), prior, cameras, latents, self.inputs())
