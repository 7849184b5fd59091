"""Tiny random checkpoints in the layout of the published GaussianCube files, and what the recorded numbers are of."""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_text import write_clip

from align3d.models.gaussiancube_files import Objaverse, OmniObject3D, Published, ShapeNetCar
from align3d.models.nets.gaussiancube_unet import Architecture, CubeUNet
from align3d.pretrained.fetched import write_record

SIDE = 8  # voxels
GUIDANCE = {"text": 3.5, "class": 2.0, "nothing": 1.0}  # of the recorded samples
# Two heads of 64 numbers for voxels, 64 of 2 for the pooled text, and norms with two tokens' numbers a group or more:
# with one of anything, its place would not matter.
TEXT = Architecture((32, 128), 1, (False, True), time=32, channels=14, text=128, text_width=64)
KINDS = {"text": TEXT, "class": Architecture((32, 128), 1, (False, True), time=32, channels=14, classes=5)}
KINDS["nothing"] = Architecture((32, 128), 1, (False, True), time=32, channels=14)
PARTS = {"text": Objaverse, "class": OmniObject3D, "nothing": ShapeNetCar}
PROMPTS = {"text": ["a red mug", "the dog"], "class": ["1", "4"], "nothing": ["unconditional", ""]}
OPTIONS = {"precision": "float32", "sampler_steps": 12, "rank": 2, "voxels": SIDE}


def drawn(rng: torch.Generator, *size: int) -> torch.Tensor:
    """Even numbers of mean 0 and deviation 1, float64: unlike normal ones, they have the same bits everywhere."""
    return (torch.rand(*size, generator=rng, dtype=torch.float64) - 0.5) * math.sqrt(12)


def network(architecture: Architecture, seed: int = 0) -> CubeUNet:
    """A network that does something with all that it is given."""
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        made = CubeUNet(architecture)
    for module in made.modules():
        normed = isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm)
        for name, parameter in module.named_parameters(recurse=False):
            std = 0.3 if parameter.ndim == 1 else 1.0 / math.sqrt(parameter[0].numel())
            std *= 0.15 if module is made.time_embed[0] else 1  # else it follows every wave of the label
            with torch.no_grad():
                parameter.copy_((normed and name == "weight") + std * drawn(rng, *parameter.shape))
    return made


def inputs() -> list[torch.Tensor]:
    """What the recorded numbers were made of: two cubes of three sides, two texts, one noise."""
    rng = torch.Generator().manual_seed(1)
    return [drawn(rng, *size).float() for size in ((2, 14, 8, 4, 6), (2, 77, 128), (1, 14, 4, 6, 4))]


def jumpy(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The clean data of another network, in float64 throughout, which sets in at a label: steps there are too long."""
    rng = torch.Generator().manual_seed(2)
    mean, mix = drawn(rng, 3, 4), drawn(rng, 3, 3)
    onset = torch.sigmoid((700 - labels.double()) / 10).view(-1, 1, 1)
    return 0.5 * mean + (0.2 + 2 * onset) * torch.tanh(torch.einsum("ij,bjn->bin", mix, x) / 2)


def jumpy_noise() -> torch.Tensor:
    """Of two rows that take steps of their own."""
    rng = torch.Generator().manual_seed(3)
    return drawn(rng, 2, 3, 4) * torch.tensor([0.5, 2.0]).view(2, 1, 1)


def spread(x: torch.Tensor) -> torch.Tensor:
    """A cube whose colours, opacities and scales are beyond 0 and 1 here and there; channels before the voxels."""
    wide = torch.ones(14)
    wide[3:6], wide[6], wide[7:10] = 4, 2, 80
    return x * wide.view(-1, 1, 1, 1)


def recorded() -> dict[str, torch.Tensor]:
    """Numbers of the published code."""
    return load_file(Path(__file__).parent / "data" / "gaussiancube.safetensors")


def norms(side: int = SIDE) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of cubes, channels last: offsets, colours, opacity, scales, quaternion."""
    mean = torch.tensor([0.0] * 3 + [0.2, 0.0, -0.2] + [0.6] + [0.06] * 3 + [0.9, 0.0, 0.1, 0.0])
    std = torch.tensor([0.02] * 3 + [0.8] * 3 + [0.3] + [0.01] * 3 + [0.1] * 4)
    return mean.expand(side, side, side, -1).clone(), std.expand(side, side, side, -1).clone()


def write_cube(folder: Path, part: type[Published], architecture: Architecture = TEXT, side: int = SIDE) -> Path:
    """Files as `align3d download` lays them, and a text encoder where one is needed."""
    root = folder / part.folder
    root.mkdir(parents=True, exist_ok=True)
    torch.save(network(architecture).state_dict(), root / f"{part.file}.pt")
    for name, value in zip(("mean", "std"), norms(side), strict=True):
        torch.save(value, root / f"{name}.pt")
    if architecture.text:
        for name in ("tokenizer", "text_encoder"):
            (folder / name).mkdir()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            write_clip(folder, "", "clip", hidden=architecture.text)
    return folder


def fetched(folder: Path, part: type[Published]) -> Path:
    """Files of a network without condition, as after `align3d download`."""
    write_cube(folder, part, KINDS["nothing"])
    ((repository, paths),) = part.sources["weights"].items()
    for path in paths:
        write_record(folder, repository, path)
    return folder


def write_all(factory: Any, side: int = SIDE) -> dict[str, Path]:
    """A folder of each kind, from pytest's `tmp_path_factory`."""
    return {kind: write_cube(factory.mktemp(kind), part, KINDS[kind], side) for kind, part in PARTS.items()}


def load(folders: dict[str, Path], kind: str, **options: Any) -> Any:
    """The generator of a kind, quick unless asked otherwise."""
    voxels = len(torch.load(next(folders[kind].rglob("mean.pt"))))
    return PARTS[kind](weights=folders[kind], **(OPTIONS | {"voxels": voxels} | options)).load()
