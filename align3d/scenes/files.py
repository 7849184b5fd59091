"""Files of scenes: which kinds there are, by the ends of their names, and what reads each.

A reader is a function of a path. It gives the scene, B = 1 and on the CPU: a types.Scene that `to(device)` moves. On a
file that is damaged, or holds something else, it raises a ValueError of one line; files are not to be trusted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from align3d import registry


@dataclass(frozen=True)
class Kind:
    """A kind of file."""

    what: str  # is in it, in a few words
    reader: str  # "package.module:function"


READERS = {
    ".ply": Kind("Gaussians", "align3d.scenes.ply:read_ply"),
    ".safetensors": Kind("a radiance field", "align3d.scenes.nerf.files:read_field"),
}
MAIN = "scene"  # the name, but for its end, of the file that a run's scene is read from


def known() -> str:
    """The kinds, for errors."""
    return ", ".join(f"{end} ({kind.what})" for end, kind in READERS.items())


def is_scene(path: Path) -> bool:
    """Whether there is a reader, by the name."""
    return path.suffix.lower() in READERS


def read_scene(path: Path, eps2d: float = 0.0) -> Any:
    """The scene of a file, B = 1, on the CPU.

    Args:
        path: Its end says what it is.
        eps2d: Pixels^2 added to projected Gaussians; changes nothing of other kinds.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If nothing reads such files, or it is damaged.
    """
    from align3d.scenes.gaussians import Gaussians

    if not path.is_file():
        raise FileNotFoundError(f"no scene file {path}; scenes that can be read: {known()}")
    if not is_scene(path):
        raise ValueError(f"{path} is no scene by its name; those that can be read: {known()}")
    reader = registry.load({}, READERS[path.suffix.lower()].reader, "reader")
    with registry.blame(f"reading {path}", reader):
        scene = reader(path)
    if isinstance(scene, Gaussians):
        return replace(scene, raster=replace(scene.raster, eps2d=eps2d))
    return scene
