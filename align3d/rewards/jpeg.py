"""Compressibility: the size of each view as a JPEG file, wanted small or large. Not differentiable.

Source: Black et al. 2023 (DDPO, arXiv 2305.13301), section 5.1: size in kilobytes (1000 bytes) at quality 95.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.types import Views


@dataclass(frozen=True)
class JPEG:
    """Size of the views as JPEG files."""

    want: Literal["small", "large"] = "small"  # small: the reward is minus the size; large: the size
    quality: int = 95  # JPEG quality, 1 to 95

    differentiable: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"rgb"})

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality must be 1 to 95, got {self.quality}")

    def __call__(self, views: Views, prompts: Sequence[str]) -> Float[Tensor, "B V"]:
        """Kilobytes (1000 bytes) of each view, negative where small is wanted; the prompts are not read."""
        import torch
        from PIL import Image

        views.require("rgb", by="reward jpeg")
        pixels = (views.rgb.detach() * 255).round().clamp(0, 255).to("cpu", torch.uint8)
        sizes = []
        for image in pixels.flatten(0, 1).permute(0, 2, 3, 1).numpy():
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=self.quality)
            sizes.append(file.tell() / 1000)
        sign = 1 if self.want == "large" else -1
        return sign * torch.tensor(sizes, device=views.rgb.device).view(views.rgb.shape[:2])
