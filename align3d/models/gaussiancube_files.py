"""The published GaussianCube generators: Objaverse, OmniObject3D, ShapeNet cars and chairs (BwZhang/GaussianCube-...).

    WEIGHTS/NAME_ckpt.pt, mean.pt, std.pt      plain state dict, and the normalisation of its cubes

The files of Objaverse lie in v1.0/ and v1.1/ of their repository; WEIGHTS may be either folder, or the one above. What
a network is conditioned on - texts, classes or nothing - is read off its weights.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from align3d.models.gaussiancube_classes import read_classes
from align3d.models.gaussiancube_norms import MOST, NORMS
from align3d.models.lora import adapted, check_options
from align3d.models.lora_files import adapter_folder
from align3d.models.text_options import TextOptions
from align3d.pretrained.fetched import check_source
from align3d.pretrained.legacy import read_legacy
from align3d.weights import NotItsWeights, Weights, fill, require_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from align3d.models.gaussiancube import GaussianCube, Space
    from align3d.models.nets.gaussiancube_unet import Architecture, CubeUNet
    from align3d.models.text import TextSource
    from align3d.types import Cameras

BOUND = 0.5  # of the scenes that come out, whatever the data set
MOST_STEPS = 1000  # of the samplers of pictures: a prediction for each noise level that the networks know
LAYERS = {  # what is adapted -> ends of the names of layers
    "attention": ("qkv", "encoder_kv", "proj_out"),
    "all": ("qkv", "encoder_kv", "proj_out", "in_layers.2", "out_layers.3", "emb_layers.1"),
}


@dataclass(frozen=True)
class Published(TextOptions):
    """What the published generators have in common."""

    weights: Path | None = None  # folder with the published files: ..._ckpt.pt, mean.pt and std.pt; or --weights
    classes: Path | None = None  # JSON file, name of a class -> number, so that prompts may be names
    adapter: Path | None = None  # a run's folder, or an adapter's, PEFT's; none = a fresh adapter
    rank: int = 8  # rank of the LoRA adapter
    alpha: float = 8.0  # the adapter's update is scaled by alpha / rank
    layers: Literal["attention", "all"] = "attention"  # adapted; all = convolutions and embeddings too
    guidance: float = 3.5  # classifier-free guidance, of models with texts or classes alone; 1 = none
    steps: int = 50  # ancestral sampling steps, which are trained on
    sampler: Literal["published", "adaptive", "multistep2", "multistep3", "ancestral"] = "published"  # of pictures
    sampler_steps: int = 300  # of multistep; unread by adaptive, which is published for texts, and ancestral
    labels: Literal["exact", "published"] = "exact"  # of noise levels; published = shifted; unread by ancestral
    voxels: int = 32  # of a cube along each axis
    size: Literal["unit", "published"] = "unit"  # of scenes; unit = all data sets fill -0.5 to 0.5
    precision: Literal["float32", "bfloat16"] = "float32"  # of the network; bfloat16 hides small differences of scores
    recompute: bool = False  # keep no activations: less memory, one more forward pass

    kinds: ClassVar[tuple[str, ...]]  # what its networks are conditioned on: texts, classes or nothing
    file: ClassVar[str]  # the weights, without an ending
    folder: ClassVar[str] = ""  # in the repository
    bound: ClassVar[float]  # of the voxels
    fov: ClassVar[float] = 0.8575560450553894  # of the published previews, radians
    distance: ClassVar[float] = 1.2  # of their cameras from the middle, in the size of the files
    sources: ClassVar[dict[str, dict[str, tuple[str, ...]]]]  # what -> repository -> patterns of its files

    encoder, text_precision = "clip", "float32"  # as published

    def __post_init__(self) -> None:
        check_options(self, sampler_steps=3)
        if not 1 <= self.voxels <= MOST:
            raise ValueError(f"model.voxels must be 1 to {MOST}, got {self.voxels}")
        if self.sampler_steps > MOST_STEPS:
            raise ValueError(
                f"model.sampler_steps must be at most {MOST_STEPS}, one for each noise level that the network was "
                f"trained on; got {self.sampler_steps}"
            )

    def prompt_list(self) -> Path | None:
        """What the lists train and heldout are, if not texts: a file, or the name of a list."""
        return None

    def schedule(self) -> Any:
        """Noise levels, a cosine."""
        from align3d.diffusion.schedule import DiscreteVP

        return DiscreteVP(kind="cosine")

    def read_text(self, folder: Path, device: str, precision: Any, offload: bool) -> TextSource:
        """CLIP-L."""
        from align3d.models.text_files import load_clip

        return load_clip(folder, device, precision, offload)

    def text_source(self, device: str = "cpu", precision: Any = None, offload: bool = False) -> TextSource:
        """The text encoder, without the other networks.

        Raises:
            ValueError: If there is no folder of one, or the model follows no texts.
        """
        if "text" not in self.sources:
            raise ValueError("this model follows no texts, so there is nothing to encode; it needs no prompt cache")
        return super().text_source(device, precision, offload)

    def text_of(self, own: Architecture, device: str) -> TextSource | None:
        """Where texts come from; None for a network that has no layers for them.

        Raises:
            ValueError: If it has some and there is no source, or has none and there is one.
        """
        if own.text:
            return self.texts(device, own.text)
        given = next((name for name in ("cache", "text") if getattr(self, name) is not None), None)
        if given is not None:
            raise ValueError(f"--model.{given} is for weights that follow texts, and these do not; leave it out")
        return None

    @property
    def scale(self) -> float:
        """What the sizes of the files are multiplied by."""
        return BOUND / self.bound if self.size == "unit" else 1.0

    def previews(self, pixels: int = 512) -> Cameras:
        """The cameras of the published previews, (1, 60), in their order.

        Those look at a mirror image, as the published code swaps two axes of a pose; these see what it should have
        been. They begin behind the object and go round it clockwise, seen from above.

        Args:
            pixels: Side of a picture.
        """
        import math

        import torch

        from align3d.scenes.cameras import orbit

        azimuth = 180.0 - torch.arange(0.0, 360.0, 6.0)[None]
        focal = 0.5 / math.tan(self.fov / 2)
        return orbit(azimuth, torch.full_like(azimuth, 30.0), self.scale * self.distance, focal, pixels, pixels)

    def root(self) -> Path:
        """The folder of the published files.

        Raises:
            FileNotFoundError: If it is not given or not there, or lacks one.
        """
        wanted = f"it takes {', '.join(f'{name}.pt' for name in (self.file, *NORMS))}, as they were published"
        if self.weights is None or not self.weights.is_dir():
            said = "is not given" if self.weights is None else f"{self.weights} is no folder"
            raise FileNotFoundError(f"--model.weights {said}; {wanted}")
        inner = self.weights / self.folder
        root = inner if (inner / f"{NORMS[0]}.pt").is_file() else self.weights
        if lacking := [name for name in (self.file, *NORMS) if not (root / f"{name}.pt").is_file()]:
            raise FileNotFoundError(f"{root} lacks {', '.join(f'{name}.pt' for name in lacking)}; {wanted}")
        return root

    def load(self, device: str = "cpu") -> GaussianCube:
        """The generator, frozen, with a LoRA adapter of no effect (or the one from `adapter`).

        Args:
            device: Where the network lives.

        Raises:
            FileNotFoundError: If a folder or file is missing.
            ValueError: If files are damaged, do not fit together or were fetched from elsewhere, texts are needed and
                there is no source of them, or an option does not fit; before the network's numbers are read.
        """
        import torch

        from align3d.models.nets.gaussiancube_unet import CubeUNet

        self.refuse()
        root = self.root()
        for name in (self.file, *NORMS):
            check_source(root / f"{name}.pt", self.sources["weights"])
        path = root / f"{self.file}.pt"
        with Weights({"": path}, read_legacy(path)) as weights:
            own = architecture_of(path, weights.shapes, self.kinds)
            classes, space = read_classes(self.classes, own.classes), self.read_space(root, own, device)
            texts = self.text_of(own, device)
            with torch.device("meta"):
                network = CubeUNet(own, self.recompute)
            fill(network, weights, getattr(torch, self.precision))
        return self.assemble(network, space, texts, device, classes)

    def refuse(self) -> None:
        """Refuse what shows before any file of the generator is opened.

        Raises:
            FileNotFoundError: If there is no adapter where one is looked for.
            ValueError: If there are more steps than noise levels.
        """
        if self.adapter is not None:
            adapter_folder(self.adapter)
        try:
            self.schedule().times(self.steps)
        except ValueError as error:
            raise ValueError(f"model.steps: {error}") from None

    def assemble(
        self,
        network: CubeUNet,
        space: Space,
        texts: TextSource | None,
        device: str = "cpu",
        classes: Mapping[str, int] | None = None,
    ) -> GaussianCube:
        """The generator from its network, which is frozen, changed in place and moved.

        Args:
            network: In the precision that it shall compute in.
            space: On the device.
            texts: Where texts come from; None for a network that follows none.
            device: Where the network shall live.
            classes: Names of the classes that it knows.

        Raises:
            FileNotFoundError: If `adapter` is not there.
            ValueError: If it does not fit.
        """
        from align3d.diffusion.dpm_solver import Levels
        from align3d.models.gaussiancube import GaussianCube

        own, schedule = network.architecture, self.schedule()
        targets = LAYERS[self.layers]
        adapter = adapted(network, self.rank, self.alpha, self.adapter, device, targets, fewest="attention")
        return GaussianCube(
            network=network,
            schedule=schedule,
            space=space,
            latent_shape=tuple(space.mean.shape),
            levels=Levels(schedule),
            steps=self.steps,
            guidance=self.guidance,
            solver=self.solver(own),
            labels=self.labels,
            adapter=adapter,
            text=texts,
            classes=classes,
            options=self,
        )

    def solver(self, own: Architecture) -> Callable[..., Tensor] | None:
        """What makes pictures; the published one goes by what the network is conditioned on. None: ancestral steps."""
        import functools

        from align3d.diffusion.dpm_solver import adaptive, multistep

        published = "adaptive" if own.text else "multistep2" if own.classes else "multistep3"
        name = published if self.sampler == "published" else self.sampler
        orders = {"multistep2": 2, "multistep3": 3}
        if name in orders:
            return functools.partial(multistep, steps=self.sampler_steps, order=orders[name])
        return adaptive if name == "adaptive" else None

    def read_space(self, root: Path, architecture: Architecture, device: str) -> Space:
        """The normalisation.

        Raises:
            ValueError: If a file is damaged, or of cubes of another shape, or the network's are no such cubes.
        """
        from align3d.models.gaussiancube import CHANNELS, Space
        from align3d.models.gaussiancube_norms import read_norms

        step = 2 ** (len(architecture.widths) - 1)
        if architecture.channels != CHANNELS or self.voxels % step:
            raise ValueError(
                f"{root}: the network is one of {architecture.channels} numbers a voxel, {self.voxels} voxels along "
                f"each axis (--model.voxels); expected {CHANNELS}, and a multiple of {step} voxels"
            )
        mean, std = read_norms(root, architecture.channels, self.voxels, self.bound)
        return Space(mean.to(device), std.to(device), self.bound, self.scale)


def architecture_of(path: Path, shapes: Mapping[str, Sequence[int]], kinds: Sequence[str]) -> Architecture:
    """The network that tensors of these shapes are the weights of, all of them.

    Args:
        path: Their file, for errors.
        shapes: By name.
        kinds: What it may be conditioned on.

    Raises:
        ValueError: If there is none, or it is conditioned on something else.
    """
    import torch

    from align3d.models.nets.gaussiancube_unet import Architecture, CubeUNet

    try:
        own = Architecture.of(shapes)
        with torch.device("meta"):
            require_keys(CubeUNet(own), shapes)
    except (NotItsWeights, ValueError) as error:
        raise ValueError(f"{path} does not fit: {error}") from None
    if own.kind not in kinds:
        raise ValueError(
            f"{path} has a network that is conditioned on {own.kind}, and this model's is on {' or '.join(kinds)}; use "
            "the model that the weights are of"
        )
    return own


def sources(repository: str, file: str, folder: str = "", text: bool = False) -> dict[str, Any]:
    """What `align3d download` fetches, and from which repositories."""
    found = {"weights": {f"BwZhang/GaussianCube-{repository}": tuple(f"{folder}{name}.pt" for name in (file, *NORMS))}}
    clip = ("text_encoder/*.json", "text_encoder/model.safetensors", "tokenizer/*")  # not its half in 16 bits
    return found | ({"text": {"stable-diffusion-v1-5/stable-diffusion-v1-5": clip}} if text else {})


@dataclass(frozen=True)
class Objaverse(Published):
    """GaussianCube of Objaverse, v1.1: 0.34 billion parameters, text of CLIP-L."""

    kinds, file, folder = ("texts",), "objaverse_ckpt", "v1.1"
    bound, distance = 0.5, 2.0
    sources = sources("Objaverse", file, "v1.1/", text=True)


@dataclass(frozen=True)
class Objaverse10(Published):
    """GaussianCube of Objaverse, v1.0; follows texts if its weights have the layers (the released inference: never)."""

    kinds, file, folder, bound = ("texts", "nothing"), "objaverse_ckpt", "v1.0", 0.5
    sources = sources("Objaverse", file, "v1.0/", text=True)

    def text_of(self, own: Architecture, device: str) -> TextSource | None:
        """Where texts come from, as of all; warns that they are followed, unlike in the published pictures."""
        found = super().text_of(own, device)
        if found is not None:
            said = "these weights have layers for texts, which are followed; the released inference gave v1.0 none"
            warnings.warn(said, RuntimeWarning, stacklevel=1)
        return found


@dataclass(frozen=True)
class OmniObject3D(Published):
    """GaussianCube of OmniObject3D: 216 classes."""

    guidance: float = 2.0  # classifier-free guidance, of models with texts or classes; 1 = none

    kinds, file, bound = ("classes",), "OmniObject3D_ckpt", 1.0
    fov, distance = 0.6911112070083618, 16.25**0.5
    sources = sources("OmniObject3D-v1.0", file)

    def prompt_list(self) -> Path:
        """The classes, by their names if there are such."""
        named = self.classes is not None and self.classes.is_file()  # `load` refuses what is none
        return self.classes if named else Path("omniobject3d")


@dataclass(frozen=True)
class ShapeNet(Published):
    """What those of ShapeNet have in common: they are conditioned on nothing."""

    kinds = ("nothing",)

    def prompt_list(self) -> Path:
        """Names of nothing, each of which counts as a prompt."""
        from align3d.models.gaussiancube import NOTHING

        return Path(NOTHING)


@dataclass(frozen=True)
class ShapeNetCar(ShapeNet):
    """GaussianCube of ShapeNet's cars, without condition."""

    file, bound = "shapenet_car_ckpt", 0.45
    sources = sources("ShapeNetCar-v1.0", file)


@dataclass(frozen=True)
class ShapeNetChair(ShapeNet):
    """GaussianCube of ShapeNet's chairs, without condition."""

    file, bound = "shapenet_chair_ckpt", 0.35
    sources = sources("ShapeNetChair-v1.0", file)
