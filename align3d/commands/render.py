"""`align3d render`: a scene file as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Render:
    """Draw a .ply scene: views side by side (.png, .jpg) or a turntable (.webp, .gif)."""

    scene: Annotated[Path, tyro.conf.Positional]  # a .ply file of Gaussians, 3DGS convention
    out: Path  # .png or .jpg: views side by side; .webp or .gif: a turntable
    size: int = 256  # side of a view in pixels
    views: int = 4  # views side by side, in equal steps around the scene
    frames: int = 36  # frames of a turntable
    fps: float = 20.0  # frames per second of a turntable
    elevation: float = 20.0  # degrees above the horizon
    radius: float = 1.4  # distance of the camera from the origin, scene units
    eps2d: float = 0.0  # pixels^2 added to every projected Gaussian; scenes trained elsewhere usually want 0.3
    backend: Literal["auto", "native", "torch", "gsplat"] = "auto"  # renderer; `align3d doctor` says which ones work
    overwrite: bool = False  # replace the file if it exists

    def __post_init__(self) -> None:
        for name in ("size", "views", "frames", "fps", "radius"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")


def run(options: Render) -> None:
    """Read, draw, write."""
    from dataclasses import replace

    from align3d.scenes.pictures import MOVING, STILL, check_extension, save_turntable, save_views, turntable
    from align3d.scenes.ply import read_ply
    from align3d.scenes.raster import RasterConfig

    suffix = check_extension(options.out, (*STILL, *MOVING))
    if options.out.exists() and not options.overwrite:
        raise FileExistsError(f"{options.out} exists already; choose another --out, or give --overwrite")
    scene = replace(read_ply(options.scene, RasterConfig(eps2d=options.eps2d)), backend=options.backend)
    look = {"size": options.size, "elevation": options.elevation, "radius": options.radius}
    if suffix in MOVING:
        save_turntable(options.out, turntable(scene, options.frames, **look), options.fps)
    else:
        azimuths = [360.0 * i / options.views for i in range(options.views)]
        save_views(options.out, scene, azimuths, **look)
    print(f"{options.out}  {scene.means.shape[1]} Gaussians")
