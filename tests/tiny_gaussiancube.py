"""Tiny random checkpoints in the layout of the published GaussianCube files."""

from pathlib import Path

import torch
from tiny_text import write_clip

from align3d.models.gaussiancube_files import Published
from align3d.models.nets.gaussiancube_unet import Architecture, CubeUNet

SIDE = 8  # voxels
TEXT = Architecture((32, 64), 1, (False, True), time=32, channels=14, text=64, text_width=32)
KINDS = {"text": TEXT, "class": Architecture((32, 64), 1, (False, True), time=32, channels=14, classes=5)}
KINDS["nothing"] = Architecture((32, 64), 1, (False, True), time=32, channels=14)


def network(architecture: Architecture, seed: int = 0) -> CubeUNet:
    """A network that does something with all that it is given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = CubeUNet(architecture)
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.12 if parameter.ndim > 1 else 0.3)
    return made


def norms(side: int = SIDE) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of cubes, channels last: offsets, colours, opacity, scales, quaternion."""
    mean = torch.tensor([0.0] * 3 + [0.2, 0.0, -0.2] + [0.6] + [0.06] * 3 + [0.9, 0.0, 0.1, 0.0])
    std = torch.tensor([0.02] * 3 + [0.8] * 3 + [0.3] + [0.01] * 3 + [0.1] * 4)
    return mean.expand(side, side, side, -1).clone(), std.expand(side, side, side, -1).clone()


def write_cube(folder: Path, part: type[Published], architecture: Architecture = TEXT) -> Path:
    """Files as `align3d download` lays them, and a text encoder where one is needed."""
    root = folder / part.folder
    root.mkdir(parents=True, exist_ok=True)
    torch.save(network(architecture).state_dict(), root / f"{part.file}.pt")
    for name, value in zip(("mean", "std"), norms(), strict=True):
        torch.save(value, root / f"{name}.pt")
    if architecture.text:
        for name in ("tokenizer", "text_encoder"):
            (folder / name).mkdir()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            write_clip(folder, "", "clip", hidden=architecture.text)
    return folder
