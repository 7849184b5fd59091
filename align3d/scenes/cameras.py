"""Cameras: the conventions of the whole library, and the ways to make cameras.

Conventions, fixed here; whatever differs is converted in the adapter that meets it:

- World: right-handed, Y up. Azimuth 0 is on +Z, azimuth 90 on +X; positive elevation is above the horizon.
- Camera: OpenCV axes (x right, y down, z forward). Poses are camera-to-world matrices.
- Intrinsics K: in pixels, origin at the top-left corner of the image, pixel centres at +0.5, square pixels, no skew.
- Images: channel first, values in [0, 1]. Depth is the camera's z in scene units, not the length of the ray.
- Normals: unit length, world frame, facing the camera.
- Quaternions: w, x, y, z.
- Angles: degrees at public borders.
- Axes: B V C H W, in this order; N primitives, K steps. A batch of cameras is (B, V): V views of each of B scenes.
- Time t: in [0, 1], 0 = data; `s < t` is the next time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from align3d.types import Cameras

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

    from align3d.rng import Streams

FOCAL = 1422.222 / 1024  # in image widths; a field of view of 39.6 degrees, as in DiffSplat (and G-Objaverse)
RADIUS = 1.4  # distance from the origin; objects fill [-0.5, 0.5]^3
FARTHEST = 1000  # limit of distances, scene units, and of focal lengths, image widths
MAX_SIZE = 8192  # pixels, side of an image
ELEVATION = 10.0  # degrees, of the four canonical views
AZIMUTHS = (0.0, 90.0, 180.0, 270.0)  # degrees, of the four canonical views


def look_at(
    eye: Float[Tensor, "*S 3"],
    target: tuple[float, float, float] = (0.0, 0.0, 0.0),
    up: tuple[float, float, float] = (0.0, 1.0, 0.0),
) -> Float[Tensor, "*S 4 4"]:
    """The camera-to-world matrix of a camera at `eye` that looks at `target`.

    Args:
        eye: Camera centres, world frame.
        target: Point in the middle of the image.
        up: World direction that points up in the image.

    Raises:
        ValueError: If a camera is at the target, or looks along `up`.
    """
    import torch

    back = eye - eye.new_tensor(target)
    right = torch.linalg.cross(eye.new_tensor(up).expand_as(back), back)
    if not bool((right.norm(dim=-1) > 1e-6 * back.norm(dim=-1)).all()):
        raise ValueError("look_at has no horizon: a camera is at its target or looks along `up`; move it or use orbit")
    right, back = (v / v.norm(dim=-1, keepdim=True) for v in (right, back))
    return _pose(right, back, eye)


def orbit(
    azimuth: Float[Tensor, "B V"],
    elevation: Float[Tensor, "B V"],
    radius: float | Float[Tensor, "B V"] = RADIUS,
    focal: float = FOCAL,
    height: int = 256,
    width: int = 256,
) -> Cameras:
    """Cameras around the origin that look at the origin.

    Args:
        azimuth: Degrees; 0 is on +Z, 90 on +X.
        elevation: Degrees above the horizon; +-90 is allowed.
        radius: Distance from the origin, scene units; of all, or of each.
        focal: Focal length in image widths.
        height: Image height in pixels.
        width: Image width in pixels.
    """
    import torch

    a, e = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    back = torch.stack([e.cos() * a.sin(), e.sin(), e.cos() * a.cos()], dim=-1)
    right = torch.stack([a.cos(), torch.zeros_like(a), -a.sin()], dim=-1)
    f = focal * width
    K = azimuth.new_tensor([[f, 0.0, width / 2], [0.0, f, height / 2], [0.0, 0.0, 1.0]])
    far = radius[..., None] if isinstance(radius, torch.Tensor) else radius
    return Cameras(_pose(right, back, far * back), K.expand(*a.shape, 3, 3), height, width)


def canonical(num: int, height: int = 256, width: int = 256, elevation: float = ELEVATION) -> Cameras:
    """The four canonical cameras, azimuths 0, 90, 180 and 270, for each of `num` scenes."""
    import torch

    azimuth = torch.tensor(AZIMUTHS).expand(num, -1)
    return orbit(azimuth, torch.full_like(azimuth, elevation), height=height, width=width)


def world_to_camera(cameras: Cameras) -> Float[Tensor, "B V 4 4"]:
    """The inverse of the cameras' rigid poses."""
    import torch

    R, centre = cameras.c2w[..., :3, :3].mT, cameras.c2w[..., :3, 3:]
    return torch.cat([torch.cat([R, -R @ centre], dim=-1), cameras.c2w[..., 3:, :]], dim=-2)


def pixel_rays(cameras: Cameras) -> tuple[Float[Tensor, "B V 3 1 1"], Float[Tensor, "B V 3 H W"]]:
    """Origins and directions of the rays through the pixel centres, world frame.

    Directions have camera z = 1 (they are not unit vectors): `origin + depth * direction` is the point at a depth.
    """
    import torch

    c2w, K = cameras.c2w, cameras.K
    y = (torch.arange(cameras.height).to(K) + 0.5)[:, None]
    x = (torch.arange(cameras.width).to(K) + 0.5)[None, :]
    u = (x - K[..., 0, 2, None, None]) / K[..., 0, 0, None, None]
    v = (y - K[..., 1, 2, None, None]) / K[..., 1, 1, None, None]
    u, v = torch.broadcast_tensors(u, v)
    local = torch.stack([u, v, torch.ones_like(u)], dim=2)
    return c2w[..., :3, 3, None, None], torch.einsum("bvij,bvjhw->bvihw", c2w[..., :3, :3], local)


def unproject(cameras: Cameras, depth: Float[Tensor, "B V 1 H W"]) -> Float[Tensor, "B V 3 H W"]:
    """World points at the given camera z of every pixel centre. Gradient: to depth."""
    origin, direction = pixel_rays(cameras)
    return origin.to(depth) + depth * direction.to(depth)


def to_device(cameras: Cameras, like: Tensor) -> Cameras:
    """The same cameras on the device and in the type of a tensor; the same object if they are there already."""
    if all(x.device == like.device and x.dtype == like.dtype for x in (cameras.c2w, cameras.K)):
        return cameras
    return replace(cameras, c2w=cameras.c2w.to(like), K=cameras.K.to(like))


def _pose(right: torch.Tensor, back: torch.Tensor, eye: torch.Tensor) -> torch.Tensor:
    """Camera-to-world matrices in OpenCV axes from two orthogonal unit vectors and the centres."""
    import torch

    up = torch.linalg.cross(back, right)
    top = torch.stack([right, -up, -back, eye], dim=-1)
    bottom = eye.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*eye.shape[:-1], 1, 4)
    return torch.cat([top, bottom], dim=-2)


@dataclass(frozen=True)
class CameraSampling:
    """Random cameras for training: some of the four canonical azimuths, shaken."""

    views: int = 2  # cameras per object, 1 to 4: a random subset of azimuths 0, 90, 180, 270
    size: int | tuple[int, int] = 64  # image side in pixels, or height and width; render time grows with its area
    azimuth_jitter: float = 30.0  # degrees; each azimuth moves by up to this much either way
    elevation: float = 20.0  # degrees above the horizon, of the middle of the range
    elevation_jitter: float = 10.0  # degrees; each elevation moves by up to this much either way
    radius: float = RADIUS  # distance from the object's centre, scene units (objects are about 1 wide)
    focal: float = FOCAL  # focal length in image widths; larger zooms in

    def __post_init__(self) -> None:
        height, width = self.height_width
        if not 1 <= self.views <= len(AZIMUTHS):
            raise ValueError(f"cameras.views must be 1 to {len(AZIMUTHS)}, got {self.views}")
        if not 1 <= min(height, width) <= max(height, width) <= MAX_SIZE:
            raise ValueError(f"cameras.size must be 1 to {MAX_SIZE} pixels, got {self.size}")
        if self.azimuth_jitter < 0 or self.elevation_jitter < 0:
            raise ValueError("cameras: a jitter is a number of degrees, 0 or more; got a negative one")
        if not abs(self.elevation) + self.elevation_jitter <= 90:  # beyond a pole, a camera is upside down
            raise ValueError(
                f"cameras.elevation +- elevation_jitter must stay within -90 and 90 degrees, "
                f"got {self.elevation} +- {self.elevation_jitter}"
            )
        if not math.isfinite(self.azimuth_jitter):
            raise ValueError(f"cameras.azimuth_jitter must be a finite number of degrees, got {self.azimuth_jitter}")
        if not (0 < self.radius <= FARTHEST and 0 < self.focal <= FARTHEST):
            raise ValueError(
                f"cameras.radius and focal must be above 0 and at most {FARTHEST}, got {self.radius} and {self.focal}"
            )

    @property
    def height_width(self) -> tuple[int, int]:
        """The image size as (height, width)."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def __call__(self, rng: Streams) -> Cameras:
        """Cameras (B, views), one row per stream; a row depends on its own stream only."""
        import torch

        chosen = rng.uniform("camera subset", (len(AZIMUTHS),)).argsort(dim=1)[:, : self.views].sort(dim=1).values
        shake = 2 * rng.uniform("camera jitter", (2, self.views)) - 1
        azimuth = torch.tensor(AZIMUTHS)[chosen] + self.azimuth_jitter * shake[:, 0]
        elevation = self.elevation + self.elevation_jitter * shake[:, 1]
        height, width = self.height_width
        return orbit(azimuth, elevation, self.radius, self.focal, height, width)


def four_sides(size: int | tuple[int, int] = CameraSampling.size) -> CameraSampling:
    """All canonical azimuths, at the middle of training's elevations: no chance, so that scores can be compared."""
    return CameraSampling(views=len(AZIMUTHS), size=size, azimuth_jitter=0.0, elevation_jitter=0.0)
