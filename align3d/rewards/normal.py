"""Do the rendered normals agree with those that a network reads off the rendered picture?

Source: the `normal_yoso` reward of Nabla-R2D3 (arXiv 2506.15684, commit 77483e6), with the estimator of yoso.py. What
differs from the published code: the U-Net's precision (`precision`), the rays of the angle mask, which are the cameras'
own (there: 40 degrees, no half pixel, y upside down; off in the published runs), and a view of nothing scores 0, not
NaN. To be confirmed with the published weights: that the estimator's normals have x to the left. The published code
hands it minus the normals in OpenCV camera axes, which this follows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from align3d.pretrained.once import read_once
from align3d.rewards.preprocess import per_image, require_colours
from align3d.rewards.published import files_of
from align3d.scenes.cameras import pixel_rays

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from jaxtyping import Float
    from torch import Tensor

    from align3d.rewards.yoso import Yoso
    from align3d.types import Cameras, Views

REPOSITORY = "Stable-X/yoso-normal-v1-7"
PARTS = ("vae", "controlnet", "unet")  # folders of it
CHUNK = {False: 8, True: 2}  # views at a time, without and with a gradient through the estimator, 2.7 GB each


@dataclass(frozen=True)
class Normal:
    """Mean cosine between rendered normals and those that a network sees in the picture, over the object's pixels."""

    weights: Path | None = None  # folder with the published files of the estimator: vae/, controlnet/ and unet/
    context: Literal["inference", "train"] = "inference"  # train: gradient to the colours too, through the estimator
    alpha: float = 0.5  # coverage above which a pixel counts, 0 to 1
    max_angle: float = 90.0  # degrees from facing the camera beyond which a seen normal does not count; 90: all do
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of the U-Net, not of the VAE; published: float16

    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"rgb", "alpha", "normal"})
    sources: ClassVar[dict[str, dict[str, tuple[str, ...]]]] = {
        "weights": {REPOSITORY: tuple(f"{part}/{file}" for part in PARTS for file in ("config.json", "*.safetensors"))}
    }

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < 1:
            raise ValueError(f"alpha must be in [0, 1), got {self.alpha}")
        if not 0 < self.max_angle <= 90:
            raise ValueError(f"max_angle must be in (0, 90] degrees, got {self.max_angle}")

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse early if the weights are not there; any prompt can be scored.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged or does not fit.
        """
        from align3d.rewards import yoso

        with files_of("normal", self.weights, self.sources) as folder:
            yoso.check(folder)

    def network(self, device: torch.device) -> Yoso:
        """The estimator, read once for each folder, device and precision; errors are those of `check`."""
        with files_of("normal", self.weights, self.sources) as folder:
            return network(folder, device, self.precision)

    def __call__(self, views: Views, prompts: Sequence[str]) -> Float[Tensor, "B V"]:
        """The mean cosine of each view, in [-1, 1], 0 where nothing is seen; the prompts are not read.

        Raises:
            FileNotFoundError, ValueError: As `check` does, and if a colour is outside [0, 1] or their sides do not
                fit the estimator.

        Gradient: to the normals; with context `train` also to the colours. The mask is a constant.
        """
        import torch

        views.require("rgb", "alpha", "normal", by="reward normal")
        require_colours(views.rgb, "normal")
        rgb = views.rgb if self.context == "train" else views.rgb.detach()
        estimator, through = self.network(rgb.device), torch.is_grad_enabled() and rgb.requires_grad
        height, width = rgb.shape[-2:]
        if height % estimator.factor or width % estimator.factor:
            raise ValueError(
                f"reward normal takes pictures whose sides are multiples of {estimator.factor} pixels, got {height} x "
                f"{width}; set the cameras' size"
            )

        def score(part: Tensor, mask: Tensor) -> Tensor:
            colours, normals, rays = part.split(3, dim=1)
            with torch.autocast(part.device.type, enabled=False), torch.set_grad_enabled(through):
                seen = estimator(colours)
            if self.max_angle < 90:
                facing = (seen.detach() * rays.detach()).sum(1, keepdim=True).abs()
                mask = mask & (facing > math.cos(math.radians(self.max_angle)))
            return (seen * normals * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp_min(1)

        parts = torch.cat([rgb, *in_its_axes(views)], 2).float().flatten(0, 1)
        mask = (views.alpha.detach() > self.alpha).flatten(0, 1)
        return per_image(score, parts, mask, chunk=CHUNK[through]).unflatten(0, rgb.shape[:2])


def in_its_axes(views: Views) -> tuple[Float[Tensor, "B V 3 H W"], Float[Tensor, "B V 3 H W"]]:
    """Rendered normals, and unit vectors from each pixel to the camera, in the estimator's axes: minus OpenCV's."""
    import torch.nn.functional as F

    rays = F.normalize(-pixel_rays(views.cameras)[1].to(views.normal), dim=2)
    return -to_camera(views.cameras, views.normal), -to_camera(views.cameras, rays)


def to_camera(cameras: Cameras, vectors: Float[Tensor, "B V 3 H W"]) -> Float[Tensor, "B V 3 H W"]:
    """Vectors of the world in OpenCV camera axes. Gradient: to the vectors."""
    import torch

    return torch.einsum("bvji,bvjhw->bvihw", cameras.c2w[..., :3, :3].to(vectors), vectors)


@read_once(2, *PARTS)
def network(folder: Path, device: torch.device, precision: str) -> Yoso:
    """The estimator, frozen."""
    import torch

    from align3d.rewards import yoso

    return yoso.load(folder, device, getattr(torch, precision))
