"""`align3d render`: a scene file as a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from align3d.commands.inputs import check_pictures, check_range
from align3d.scenes.files import READERS, read_scene

if TYPE_CHECKING:
    from align3d.types import Scene

LIMITS = {"fps": (0.1, 100), "elevation": (-90, 90), "radius": (0.001, 1000), "fov": (1, 170), "eps2d": (0, 1000)}
MAX_JPEG = 65535  # pixels, width in that format


@dataclass(frozen=True, kw_only=True)
class Render:
    """Draw a scene's file: views side by side (.png, .jpg) or a turntable (.webp, .gif, .mp4)."""

    scene: Annotated[Path, tyro.conf.Positional]  # .ply file of Gaussians, or scene.safetensors of a radiance field
    out: Path  # .png or .jpg: views side by side; .webp, .gif or .mp4 (extra `video`): a turntable
    size: int = 256  # side of a view in pixels, at most 8192
    views: int = 4  # views side by side, in equal steps around the scene
    frames: int = 36  # frames of a turntable
    fps: float = 20.0  # frames per second of a turntable, 0.1 to 100
    elevation: float = 20.0  # degrees above the horizon, -90 to 90
    radius: float = 1.4  # distance of the camera from the origin, scene units, at most 1000
    fov: float | None = None  # field of view in degrees, 1 to 170; none = 39.6, that of the pictures in training
    eps2d: float = 0.0  # pixels^2 added to every projected Gaussian; scenes trained elsewhere usually want 0.3
    backend: Literal["auto", "native", "torch", "gsplat"] = "auto"  # for Gaussians; `align3d doctor` says which work
    overwrite: bool = False  # replace the file if it exists

    def __post_init__(self) -> None:
        for name in ("views", "frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, (low, high) in LIMITS.items():
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), low, high)
        suffix = self.out.suffix.lower()
        moving = suffix in (".webp", ".gif", ".mp4")
        check_pictures(self.size, *(("frames", self.frames) if moving else ("views", self.views)))
        if suffix in (".jpg", ".jpeg") and self.size * self.views > MAX_JPEG:
            raise ValueError(f"{suffix} pictures are at most {MAX_JPEG} pixels wide, got {self.size * self.views}")


def run(options: Render) -> None:
    """Read, draw, write."""
    from align3d.scenes.pictures import MOVING, STILL, check_extension, save_turntable, save_views, turntable

    suffix = check_extension(options.out, tuple(dict.fromkeys((*STILL, *MOVING))))
    if options.out.exists() and not options.overwrite:
        raise FileExistsError(f"{options.out} exists already; choose another --out, or give --overwrite")
    scene, what = read(options)
    look = {"size": options.size, "elevation": options.elevation, "radius": options.radius}
    if options.fov is not None:
        look["focal"] = 0.5 / math.tan(math.radians(options.fov) / 2)
    if suffix in MOVING:
        save_turntable(options.out, turntable(scene, options.frames, **look), options.fps)
    else:
        azimuths = [360.0 * i / options.views for i in range(options.views)]
        save_views(options.out, scene, azimuths, **look)
    print(f"{options.out}  {what}")


def read(options: Render) -> tuple[Scene, str]:
    """The scene of the file, and what it is in a few words.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If it holds no scene, or one that an option is not for.
    """
    from dataclasses import replace

    from align3d.scenes.gaussians import Gaussians

    path = options.scene
    scene = read_scene(path, options.eps2d)
    if isinstance(scene, Gaussians):
        number = scene.means.shape[1]
        return replace(scene, backend=options.backend), f"{number} Gaussian{'' if number == 1 else 's'}"
    given = [name for name, usual in (("eps2d", 0.0), ("backend", "auto")) if getattr(options, name) != usual]
    if given:
        raise ValueError(f"--{given[0]} is for Gaussians, and {path} is no .ply file; leave it out")
    return scene, READERS[path.suffix.lower()].what
