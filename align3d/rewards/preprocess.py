"""What rewards do to images, differentiable: resize, normalise, score a few at a time.

Images are in [0, 1], channel first. No PIL, no 8 bit: a gradient has to pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float
    from torch import Tensor

ROUNDING = 0.01  # by which colours may leave [0, 1]; of another range, they do it by more


def require_colours(images: Float[Tensor, "*n"], by: str) -> None:
    """Refuse images that are not in [0, 1], up to a hundredth: of another range, most likely.

    Raises:
        ValueError: Says what there is; `by` is the reward that needs them.
    """
    least, most = (float(x) for x in images.detach().aminmax())
    if least < -ROUNDING or most > 1 + ROUNDING:
        raise ValueError(f"reward {by} needs colours from 0 to 1, got {least:.3g} to {most:.3g}; scale the images")


def resize(
    images: Float[Tensor, "n c h w"],
    size: int | tuple[int, int],
    mode: Literal["bicubic", "bilinear"] = "bicubic",
    antialias: bool = True,
) -> Float[Tensor, "n c h2 w2"]:
    """The images at another size; bicubic results can leave [0, 1] by a few hundredths, at edges.

    Args:
        images: Any range.
        size: Pixels, (height, width) or one number for both; the aspect ratio is not kept.
        mode: The interpolating kernel.
        antialias: Widen the kernel when shrinking, as PIL does; PIL's bicubic kernel (a = -0.5) also when
            enlarging. Without, torch's kernel (a = -0.75) samples between pixels, whatever the scale.

    Raises:
        ValueError: If the size is not positive.

    Gradient: to the images.
    """
    import torch.nn.functional as F

    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"size must be 1 pixel or more, got {height} x {width}")
    return F.interpolate(images, (height, width), mode=mode, antialias=antialias, align_corners=False)


def normalize(
    images: Float[Tensor, "n c h w"], mean: float | Sequence[float], std: float | Sequence[float]
) -> Float[Tensor, "n c h w"]:
    """(images - mean) / std, with one number or one for each channel."""
    import torch

    mean, std = (torch.as_tensor(v, dtype=images.dtype, device=images.device).reshape(-1, 1, 1) for v in (mean, std))
    return (images - mean) / std


def per_image(
    function: Callable[..., Float[Tensor, "n"]],
    images: Float[Tensor, "n *i"],
    *others: Tensor,
    chunk: int | None = None,
) -> Float[Tensor, "n"]:
    """One score per image, with the gradient taken a few images at a time, so that only their graph is ever held.

    Values and gradient are those of function(images, *others); a second derivative is not to be had.

    Args:
        function: From some of the images, and the same rows of `others`, to one number each, independently.
        images: What gets a gradient.
        *others: Constants with as many rows.
        chunk: Images at a time; by default 8 on a CPU, where more would fall out of its caches, else 64.

    Gradient: to images, computed now if they need one.
    """
    from align3d.gradients import in_parts, with_slopes

    chunk = chunk or (8 if images.device.type == "cpu" else 64)
    values, slopes = in_parts(lambda part, rows: function(part, *(other[rows] for other in others)), images, chunk)
    return values if slopes is None else with_slopes(images, values, slopes)
