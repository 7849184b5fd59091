"""Depth-normal consistency: do the rendered normals agree with the surface that the rendered depth describes?

Source: the `normal_d2n_cons` reward of Nabla-R2D3 (arXiv 2506.15684, commit 77483e6) after RaDe-GS / 2DGS. What
differs from the published code: the cameras' true intrinsics (it un-projects with 40 degrees, where the true angle is
39.598), and by default a stricter mask (see `alpha` and `neighbours`). `alpha=0.5, neighbours=False, fov=40,
detach=depth` gives its numbers, but for a view of nothing, which scores 0 here and NaN there; max_angle=60 is its angle
mask, which the published runs leave off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from align3d.scenes.cameras import pixel_rays, unproject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor

    from align3d.types import Cameras, Views


@dataclass(frozen=True)
class DNC:
    """Mean cosine between rendered normals and normals of the rendered depth, over the object's pixels."""

    alpha: float = 0.9  # coverage above which a pixel counts, 0 to 1; the published code has 0.5
    neighbours: bool = True  # ask it also of the 4 pixels whose depths are compared; the published code does not
    max_angle: float = 90.0  # degrees from facing the camera beyond which a rendered normal does not count; 90: all do
    detach: Literal["none", "depth", "normal"] = "none"  # which of the two gets no gradient; published: depth
    fov: float | None = None  # degrees over the height, in the place of the cameras' own, as the published code: 40

    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"alpha", "depth", "normal"})

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < 1:
            raise ValueError(f"alpha must be in [0, 1), got {self.alpha}")
        if not 0 < self.max_angle <= 90:
            raise ValueError(f"max_angle must be in (0, 90] degrees, got {self.max_angle}")
        if self.fov is not None and not 0 < self.fov < 180:
            raise ValueError(f"fov must be in (0, 180) degrees, got {self.fov}")

    def __call__(self, views: Views, prompts: Sequence[str]) -> Float[Tensor, "B V"]:
        """The mean cosine of each view, in [-1, 1], 0 where nothing is seen; the prompts are not read.

        Gradient: to depth and normals, less what `detach` names; the mask is a constant.
        """
        views.require("alpha", "depth", "normal", by="reward dnc")
        depth = views.depth.detach() if self.detach == "depth" else views.depth
        normal = views.normal.detach() if self.detach == "normal" else views.normal
        mask = self.mask(views)
        cameras = views.cameras if self.fov is None else seen_with(views.cameras, self.fov)
        cosine = (normals_from_depth(depth, cameras) * normal).sum(2, keepdim=True)
        return (cosine * mask).sum((2, 3, 4)) / mask.sum((2, 3, 4)).clamp_min(1)

    def mask(self, views: Views) -> Bool[Tensor, "B V 1 H W"]:
        """Which pixels count; not the border, which has no central difference (with `fov`, as 0, as published)."""
        import torch.nn.functional as F

        solid = (views.alpha.detach() > self.alpha) & (views.depth.detach() > 0)
        inner = solid[..., 1:-1, 1:-1]
        if self.neighbours:
            inner = inner & solid[..., :-2, 1:-1] & solid[..., 2:, 1:-1] & solid[..., 1:-1, :-2] & solid[..., 1:-1, 2:]
        mask = solid if self.fov is not None and not self.neighbours else F.pad(inner, (1, 1, 1, 1))
        if self.max_angle < 90:
            normal = views.normal.detach()
            rays = pixel_rays(views.cameras)[1] if self.fov is None else published_rays(views.cameras, self.fov)
            facing = -(F.normalize(rays.to(normal), dim=2) * normal).sum(2, keepdim=True)
            facing = facing if self.fov is None else facing.abs()
            mask = mask & (facing > math.cos(math.radians(self.max_angle)))
        return mask


def seen_with(cameras: Cameras, fov: float) -> Cameras:
    """The cameras with another field of view: degrees over the height, the principal point in the middle."""
    height, width = cameras.height, cameras.width
    focal = height / (2 * math.tan(math.radians(fov) / 2))
    K = cameras.K.new_tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    return replace(cameras, K=K.expand_as(cameras.K))


def published_rays(cameras: Cameras, fov: float) -> Float[Tensor, "B V 3 H W"]:
    """The directions that the published angle mask takes for the rays, world frame.

    They go through the corners of the pixels, not the centres, and have y upwards where the normals have it downwards:
    right in the middle of the picture only.
    """
    import torch

    seen = seen_with(cameras, fov)
    K = seen.K.clone()
    K[..., :2, 2] += 0.5  # corners in the place of centres
    rays = torch.einsum("bvji,bvjhw->bvihw", cameras.c2w[..., :3, :3], pixel_rays(replace(seen, K=K))[1])
    rays = rays * rays.new_tensor([1, -1, 1])[:, None, None]
    return torch.einsum("bvij,bvjhw->bvihw", cameras.c2w[..., :3, :3], rays)


def normals_from_depth(depth: Float[Tensor, "B V 1 H W"], cameras: Cameras) -> Float[Tensor, "B V 3 H W"]:
    """Normals of the surface that a depth map describes: unit, world frame, facing the camera; 0 on the border.

    Central differences, one pixel to each side: exact on a plane, second order in the pixel's size elsewhere.

    Args:
        depth: Camera z in scene units.
        cameras: The ones that saw it.

    Gradient: to depth. Next to pixels that hit nothing the normal is finite but means nothing.
    """
    import torch
    import torch.nn.functional as F

    points = unproject(cameras, depth)
    down = points[..., 2:, 1:-1] - points[..., :-2, 1:-1]
    right = points[..., 1:-1, 2:] - points[..., 1:-1, :-2]
    normal = torch.linalg.cross(down, right, dim=2)  # y x x = -z in camera axes: towards the camera
    return F.pad(F.normalize(normal, dim=2), (1, 1, 1, 1))
