"""The Inception network of the Frechet Inception Distance, in plain torch; its weights are a file of the user's.

Source: Szegedy et al. 2015 (arXiv 1512.00567) as in mseitzer/pytorch-fid, src/pytorch_fid/inception.py (Apache-2.0),
whose numbers it gives: TensorFlow's network of 2015-12-05, which leaves the padding out of its mean pooling and, in
its last block, takes the maximum. Left out: the classifier, the earlier layers' features, training. Batch
normalisation is folded into the convolutions when weights are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from align3d.pretrained.once import read_once
from align3d.rewards.preprocess import normalize, resize

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from jaxtyping import Float
    from torch import Tensor

    Steps = tuple[tuple[int, int | tuple[int, int], int], ...]  # (channels out, kernel, stride) in a row
    Network = dict[str, tuple[Tensor, Tensor]]  # weight and bias of each convolution

FILE = "pt_inception-2015-12-05-6726825d.pth"
WHERE = f"{FILE} is in the release fid_weights of github.com/mseitzer/pytorch-fid"
SUFFIXES = (".pth", ".pt", ".safetensors")
SMALLEST = 75  # pixels; of less, nothing is left after the strides
CHUNK = 16  # images that go through the network together
FORK = 0  # a step that goes two ways, 1 x 3 and 3 x 1, side by side in the output

STEM = {  # name: channels out, kernel, stride, padding; None is a maximum over 3 x 3 with stride 2
    "Conv2d_1a_3x3": (32, 3, 2, 0),
    "Conv2d_2a_3x3": (32, 3, 1, 0),
    "Conv2d_2b_3x3": (64, 3, 1, 1),
    "maxpool1": None,
    "Conv2d_3b_1x1": (80, 1, 1, 0),
    "Conv2d_4a_3x3": (192, 3, 1, 0),
    "maxpool2": None,
}


@dataclass(frozen=True)
class Block:
    """Branches side by side, the last of them a pooling."""

    branches: dict[str, Steps]
    pool: str  # "mean", "max", or "stride" for a maximum that halves the size
    pooled: int = 0  # channels of the convolution after the pooling; 0 has none


def _a(pooled: int) -> Block:
    double = ((64, 1, 1), (96, 3, 1), (96, 3, 1))
    return Block(
        {"branch1x1": ((64, 1, 1),), "branch5x5": ((48, 1, 1), (64, 5, 1)), "branch3x3dbl": double}, "mean", pooled
    )


def _c(c: int) -> Block:
    single = ((c, 1, 1), (c, (1, 7), 1), (192, (7, 1), 1))
    double = ((c, 1, 1), (c, (7, 1), 1), (c, (1, 7), 1), (c, (7, 1), 1), (192, (1, 7), 1))
    return Block({"branch1x1": ((192, 1, 1),), "branch7x7": single, "branch7x7dbl": double}, "mean", 192)


def _e(pool: str) -> Block:
    double = ((448, 1, 1), (384, 3, 1), (384, FORK, 1))
    return Block(
        {"branch1x1": ((320, 1, 1),), "branch3x3": ((384, 1, 1), (384, FORK, 1)), "branch3x3dbl": double}, pool, 192
    )


BLOCKS = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": Block({"branch3x3": ((384, 3, 2),), "branch3x3dbl": ((64, 1, 1), (96, 3, 1), (96, 3, 2))}, "stride"),
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": Block(
        {
            "branch3x3": ((192, 1, 1), (320, 3, 2)),
            "branch7x7x3": ((192, 1, 1), (192, (1, 7), 1), (192, (7, 1), 1), (192, 3, 2)),
        },
        "stride",
    ),
    "Mixed_7b": _e("mean"),
    "Mixed_7c": _e("max"),
}


@dataclass(frozen=True)
class InceptionFeatures:
    """Pooled features of the FID's own Inception network, from its weights in a file or folder of yours."""

    folder: Path  # pt_inception-2015-12-05-6726825d.pth, the same as .safetensors, or a folder with one of them in it
    size: int = 299  # pixels to which a view is resized; at any other the distance is not the FID of others

    dims: ClassVar[int] = 2048

    def __post_init__(self) -> None:
        if self.size < SMALLEST:
            raise ValueError(f"size must be {SMALLEST} pixels or more, got {self.size}")

    def check(self) -> None:
        """Refuse early.

        Raises:
            FileNotFoundError: If there is no file of weights.
            ValueError: If it is damaged or holds something else.
        """
        import torch

        network(weights_path(self.folder), torch.device("cpu"))

    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 2048"]:
        """Features of each image in [0, 1], 0 or more; gradient to the images, in float32 whatever autocast says.

        Raises:
            FileNotFoundError, ValueError: As `check` does.
        """
        import torch

        net = network(weights_path(self.folder), images.device)
        with torch.autocast(images.device.type, enabled=False):
            parts = images.float().split(CHUNK)
            # as everybody's FID: between pixels without a wider kernel, also where that is aliased
            small = (resize(part, self.size, "bilinear", antialias=False) for part in parts)
            return torch.cat([_forward(net, normalize(part, 0.5, 0.5)) for part in small])


def weights_path(folder: Path) -> Path:
    """The file of weights that a path means.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If a folder has several of them.
    """
    if folder.is_file():
        return folder
    found = (
        [folder / FILE] if (folder / FILE).is_file() else sorted(p for p in folder.glob("*") if p.suffix in SUFFIXES)
    )
    if not found:
        raise FileNotFoundError(f"no Inception weights at {folder}; {WHERE}")
    if len(found) > 1:
        raise ValueError(
            f"{folder} has {len(found)} files that may hold weights, such as {found[0].name}; name the file"
        )
    return found[0]


@read_once(2)
def network(path: Path, device: torch.device) -> Network:
    """The network's convolutions, batch normalisation folded in; read once for each file and device, float32.

    Raises:
        ValueError: If the file is damaged, or its names or shapes are not the network's.
    """
    return {name: (w.to(device), b.to(device)) for name, (w, b) in convert(_read(path), path).items()}


def convert(state: dict[str, Any], path: Path) -> Network:
    """The convolutions of a state dict in torchvision's names.

    Args:
        state: With the classifier `fc` of 1008 classes, which is not used; num_batches_tracked is passed over.
        path: Named in errors.

    Raises:
        ValueError: If a name is missing, is left over, has another shape, or something in it is not finite.
    """
    import torch

    from align3d.rewards.efficientnet import fold

    wanted: dict[str, tuple[int, ...]] = {"fc.weight": (1008, InceptionFeatures.dims), "fc.bias": (1008,)}
    for name, shape in layout():
        wanted[f"{name}.conv.weight"] = shape
        wanted |= {f"{name}.bn.{part}": shape[:1] for part in ("weight", "bias", "running_mean", "running_var")}
    have = {key: value for key, value in state.items() if not str(key).endswith("num_batches_tracked")}
    what = f"{path} does not hold the weights of the FID's Inception network"
    if have.keys() != wanted.keys():
        missing, left = sorted(wanted.keys() - have.keys()), sorted(map(str, have.keys() - wanted.keys()))
        said = f"{missing[0]!r} is missing" if missing else f"{left[0]!r} is left over"
        raise ValueError(f"{what}: {said}; {WHERE}")
    for key, shape in wanted.items():
        if not isinstance(have[key], torch.Tensor) or tuple(have[key].shape) != shape:
            got = tuple(getattr(have[key], "shape", ())) or type(have[key]).__name__
            raise ValueError(f"{what}: {key!r} should be {shape}, got {got}; {WHERE}")
        if not have[key].is_floating_point() or not bool(have[key].isfinite().all()):
            raise ValueError(f"{path} is damaged, {key!r} has numbers that are not finite; copy it again")
    result = {}
    for name, _ in layout():
        norm = [have[f"{name}.bn.{part}"].float() for part in ("weight", "bias", "running_mean", "running_var")]
        result[name] = fold(have[f"{name}.conv.weight"].float(), *norm)
    return result


def layout() -> Iterator[tuple[str, tuple[int, int, int, int]]]:
    """Name and weight shape of every convolution, from the image on."""
    width = 3
    for name, step in STEM.items():
        if step is not None:
            yield name, (step[0], width, step[1], step[1])
            width = step[0]
    for name, block in BLOCKS.items():
        out = block.pooled or width  # of the pooling
        for branch, steps in block.branches.items():
            channels = width
            for keys, (c, _, _) in zip(_keys(f"{name}.{branch}", steps), steps, strict=True):
                for key, kernel in keys.items():
                    yield key, (c, channels, *kernel)
                channels = c * len(keys)
            out += channels
        if block.pooled:
            yield f"{name}.branch_pool", (block.pooled, width, 1, 1)
        width = out


def _keys(branch: str, steps: Steps) -> Iterator[dict[str, tuple[int, int]]]:
    """For each step of a branch, the names of its convolutions and their kernels: one, or two at a fork."""
    for i, (_, kernel, _) in enumerate(steps, 1):
        if kernel == FORK:
            yield {f"{branch}_{i}a": (1, 3), f"{branch}_{i}b": (3, 1)}
        else:
            pair = kernel if isinstance(kernel, tuple) else (kernel, kernel)
            yield {branch if len(steps) == 1 else f"{branch}_{i}": pair}


def _forward(net: Network, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 2048"]:
    """The mean of the last block's maps, of images in [-1, 1]."""
    import torch.nn.functional as F

    for name, step in STEM.items():
        x = F.max_pool2d(x, 3, 2) if step is None else _conv(net, name, x, step[2], (step[3], step[3]))
    for name, block in BLOCKS.items():
        x = _mixed(net, name, block, x)
    return x.mean((-2, -1))


def _mixed(net: Network, name: str, block: Block, x: Tensor) -> Tensor:
    """A block's branches, one after the other in the channels."""
    import torch
    import torch.nn.functional as F

    outputs = []
    for branch, steps in block.branches.items():
        y = x
        for keys, (_, _, stride) in zip(_keys(f"{name}.{branch}", steps), steps, strict=True):
            pads = [(0, 0) if stride > 1 else (h // 2, w // 2) for h, w in keys.values()]
            y = torch.cat([_conv(net, key, y, stride, pad) for key, pad in zip(keys, pads, strict=True)], 1)
        outputs.append(y)
    if block.pool == "stride":
        outputs.append(F.max_pool2d(x, 3, 2))
    else:
        mean = block.pool == "mean"
        pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) if mean else F.max_pool2d(x, 3, 1, 1)
        outputs.append(_conv(net, f"{name}.branch_pool", pooled))
    return torch.cat(outputs, 1)


def _conv(net: Network, name: str, x: Tensor, stride: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    import torch.nn.functional as F

    weight, bias = net[name]
    return F.relu(F.conv2d(x, weight, bias, stride, pad), inplace=True)


def _read(path: Path) -> dict[str, Any]:
    """A state dict; no code of the file is run.

    Raises:
        ValueError: If it cannot be read.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive raises whatever its first wrong byte leads to
        raise ValueError(f"cannot read Inception weights from {path}: damaged, or no such file; {WHERE}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected a state dict; {WHERE}")
    return state
