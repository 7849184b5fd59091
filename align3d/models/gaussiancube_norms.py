"""The normalisation of GaussianCube's cubes: mean.pt and std.pt, [X, Y, Z, 14] or the same for all voxels, [14]."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Float
    from torch import Tensor

NORMS = ("mean", "std")  # the files, without an ending
MOST = 256  # voxels a side
COLOUR = 100.0  # of spherical harmonics; 1.8 is white


def read_norms(
    root: Path, channels: int, side: int, bound: float
) -> tuple[Float[Tensor, "C X Y Z"], Float[Tensor, "C X Y Z"]]:
    """Mean and deviation, float32.

    Args:
        root: The folder of both files.
        channels: Numbers of a voxel, as the network has them.
        side: Voxels along each axis.
        bound: Of the voxels.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is damaged, of cubes of another shape, or of other data as far as it shows.
    """
    import torch

    mean, std = (read_norm(root / f"{name}.pt", channels, side) for name in NORMS)
    if torch.equal(mean, std):
        raise ValueError(f"{root}: mean.pt and std.pt are the same numbers; copy both from where the weights come from")
    check_norms(root, mean, std, bound)
    mean, std = (norm.expand(-1, side, side, side).contiguous() for norm in (mean, std))
    return mean, std


def read_norm(path: Path, channels: int, side: int) -> Float[Tensor, "C X Y Z"]:
    """One file of the normalisation, channels first, float32: of a cube, or [C, 1, 1, 1], the same for all its voxels.

    Raises:
        ValueError: If it is damaged, or neither.
    """
    import torch

    from align3d.pretrained.legacy import is_whole, load_legacy
    from align3d.weights import require_numbers

    value = load_legacy(path)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        raise ValueError(f"{path} is no published file of a normalisation: it holds no plain tensor of real numbers")
    if not is_whole(value, path):
        raise ValueError(f"{path} is damaged, or no published file: it does not hold all of its numbers")
    if value.shape not in ((channels,), (side, side, side, channels)):
        raise ValueError(
            f"{path} is {list(value.shape)}, expected {[side, side, side, channels]}: a cube, channels last; or "
            f"[{channels}], the same for all voxels (--model.voxels: along each axis)"
        )
    require_numbers(path, "it", value)
    cube = value.detach() if value.ndim == 4 else value.detach().reshape(1, 1, 1, -1)
    return cube.permute(3, 0, 1, 2).float().contiguous()


def check_norms(root: Path, mean: Tensor, std: Tensor, bound: float) -> None:
    """Refuse a mean and a deviation that no data set of this size of voxels has.

    They are those of values as they are in the files, which have not been clipped: opacities are within 0 and 1, and
    quaternions are normalised, so that their deviations have a bound (half of the range; twice that where one number
    is for all voxels, which may be the range itself). Scales and places have none; what is refused of them is far from
    any object in the voxels.

    Raises:
        ValueError: Says what is wrong.
    """
    import torch

    opacity, scale, quat = mean[6], mean[7:10], mean[10:]
    axes = [torch.linspace(-bound, bound, n) if n > 1 else torch.zeros(1) for n in mean.shape[1:]]
    place = mean[:3] + torch.stack(torch.meshgrid(*axes, indexing="ij"))
    factor = 2.0 if std.shape[1] == 1 else 1.0
    most = {
        "offsets": (slice(0, 3), 2 * bound),
        "colours": (slice(3, 6), COLOUR),
        "opacity": (slice(6, 7), 0.5),
        "scales": (slice(7, 10), 1.0),
        "quaternions": (slice(10, 14), 1.0),
    }
    problems = {
        "numbers are too large for float32": not bool((mean.isfinite() & std.isfinite()).all()),
        "deviations are not above 0": not bool((std > 0).all()),
        "the mean opacity is not within 0 and 1": bool((opacity < -0.01).any() or (opacity > 1.01).any()),
        f"mean scales are not within 0 and {bound}": bool((scale < -0.01).any() or (scale > bound).any()),
        "mean quaternions are not within -1 and 1": bool((quat.abs() > 1.01).any()),
        f"mean colours are beyond {COLOUR:g}": bool((mean[3:6].abs() > COLOUR).any()),
        f"mean offsets are beyond {2 * bound}": bool((mean[:3].abs() > 2 * bound).any()),
        f"mean places are beyond {2 * bound}": bool((place.abs() > 2 * bound).any()),
    }
    for name, (rows, limit) in most.items():
        limit *= factor
        problems[f"deviations of {name} are above {limit:g}"] = bool((std[rows] > 1.01 * limit).any())
    wrong = [problem for problem, is_so in problems.items() if is_so]
    if wrong:
        raise ValueError(
            f"{root}: {wrong[0]}, so mean.pt and std.pt are not those of this data set; copy both from where the "
            f"weights come from"
        )
