"""Compressibility and incompressibility: the size of each view as a JPEG file. Not differentiable.

Source: Black et al. 2023 (DDPO, arXiv 2305.13301), section 5.1: size in kilobytes (1000 bytes) at quality 95. For
those who want to see an optimiser work without any network: what wins is known, a blank view or noise.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.types import Views


@dataclass(frozen=True)
class _JPEG:
    """What both have in common."""

    quality: int = 95  # JPEG quality, 1 to 95

    differentiable: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"rgb"})
    name: ClassVar[str]
    sign: ClassVar[int]

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality must be 1 to 95, got {self.quality}")

    def __call__(self, views: Views, prompts: Sequence[str]) -> Float[Tensor, "B V"]:
        """The kilobytes of each view, 1000 bytes each, or minus them; the prompts are not read."""
        return self.sign * kilobytes(views, self.quality, by=self.name)


@dataclass(frozen=True)
class JPEGCompress(_JPEG):
    """How small the views are as JPEG files: minus kilobytes."""

    name, sign = "jpeg-compress", -1


@dataclass(frozen=True)
class JPEGIncompress(_JPEG):
    """How large the views are as JPEG files: kilobytes."""

    name, sign = "jpeg-incompress", 1


def kilobytes(views: Views, quality: int, by: str) -> Float[Tensor, "B V"]:
    """The size of each view as a JPEG file, by Pillow's encoder.

    Args:
        views: With colours in [0, 1], rounded to 8 bit here.
        quality: 1 to 95.
        by: The reward that asks, for the error.
    """
    import torch
    from PIL import Image

    views.require("rgb", by=f"reward {by}")
    pixels = (views.rgb.detach() * 255).round().clamp(0, 255).to("cpu", torch.uint8)
    sizes = []
    for image in pixels.flatten(0, 1).permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        sizes.append(file.tell() / 1000)
    return torch.tensor(sizes, device=views.rgb.device).view(views.rgb.shape[:2])
