"""Scenes as pictures: contact sheets, views side by side, turntables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from align3d.files import replacing
from align3d.scenes.cameras import AZIMUTHS, FOCAL, RADIUS, orbit
from align3d.scenes.video import problem, write_mp4

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, UInt8
    from torch import Tensor

    from align3d.types import Scene

STILL = (".png", ".webp", ".jpg", ".jpeg")
MOVING = (".webp", ".gif", ".mp4")
WHITE = (1.0, 1.0, 1.0)
GAP = 6  # pixels around and between the pictures of a sheet
INK = (70, 70, 70)  # of the labels, 8-bit RGB
TEXT = 12  # height of the labels' letters, pixels


def to_uint8(image: Float[Tensor, "*S 3 H W"]) -> UInt8[np.ndarray, "*S H W 3"]:
    """8-bit pixels, channels last; values outside [0, 1] are cut, NaN is black."""
    x = image.detach().float().nan_to_num(nan=0.0).clamp(0, 1)
    return (x * 255 + 0.5).to(torch.uint8).movedim(-3, -1).cpu().numpy()


def sheet(images: Float[Tensor, "n 3 h w"], columns: int, labels: Sequence[str] | None = None) -> Image.Image:
    """A contact sheet: pictures in rows, from left to right, each with a short text below it.

    Args:
        images: In [0, 1].
        columns: Pictures in a row.
        labels: One text for each picture; too long ones take a second line and end in dots.

    Raises:
        ValueError: If there is no picture, no column, or not one label for each picture.
    """
    n, _, h, w = images.shape
    if n < 1 or columns < 1:
        raise ValueError(f"a sheet needs at least one picture and one column, got {n} and {columns}")
    if labels is not None and len(labels) != n:
        raise ValueError(f"a sheet of {n} pictures needs {n} labels, got {len(labels)}")
    font = ImageFont.load_default(TEXT)
    texts = [_wrap(label, w, font) for label in labels or ()]
    line = TEXT + 3
    below = line * max((len(text) for text in texts), default=0)
    rows, columns = -(-n // columns), min(columns, n)
    page = Image.new("RGB", (GAP + columns * (w + GAP), GAP + rows * (h + below + GAP)), "white")
    draw = ImageDraw.Draw(page)
    for i, pixels in enumerate(to_uint8(images)):
        x, y = GAP + (i % columns) * (w + GAP), GAP + (i // columns) * (h + below + GAP)
        page.paste(Image.fromarray(pixels), (x, y))
        for j, text in enumerate(texts[i] if texts else ()):
            draw.text((x + w / 2, y + h + j * line), text, fill=INK, font=font, anchor="ma")
    return page


def save_sheet(
    path: str | Path, images: Float[Tensor, "n 3 h w"], columns: int, labels: Sequence[str] | None = None
) -> None:
    """Writes `sheet` to a .png, .webp or .jpg file."""
    check_extension(path, STILL)
    _save(path, sheet(images, columns, labels))


def look(
    scene: Scene,
    num: int,
    azimuths: Sequence[float] = AZIMUTHS,
    size: int = 256,
    elevation: float = 20.0,
    radius: float = RADIUS,
    focal: float = FOCAL,
    chunk: int = 12,
    background: tuple[float, float, float] = WHITE,
) -> Float[Tensor, "B V 3 size size"]:
    """Pictures of a batch of scenes, one per azimuth, on the CPU.

    Args:
        scene: B scenes.
        num: B, which a Scene need not tell.
        azimuths: Degrees, V of them.
        size: Side of a picture, pixels.
        elevation: Degrees above the horizon.
        radius: Distance of the cameras from the origin, scene units.
        focal: Focal length in image widths.
        chunk: Azimuths rendered at a time; bounds the memory.
        background: RGB in [0, 1].

    Raises:
        ValueError: If no picture is asked for, or the scene has no colours.
    """
    if len(azimuths) < 1 or size < 1:
        raise ValueError(f"pictures need at least one view and one pixel, got {len(azimuths)} and {size}")
    parts = []
    for start in range(0, len(azimuths), chunk):
        azimuth = torch.tensor(azimuths[start : start + chunk], dtype=torch.float32).expand(num, -1)
        cameras = orbit(azimuth, torch.full_like(azimuth, elevation), radius, focal, size, size)
        with torch.no_grad():
            views = scene.render(cameras, want=("rgb",), background=background)
        views.require("rgb", by="a picture")
        parts.append(views.rgb.cpu())
    return torch.cat(parts, dim=1)


def save_views(
    path: str | Path,
    scene: Scene,
    azimuths: Sequence[float] = AZIMUTHS,
    size: int = 256,
    elevation: float = 20.0,
    radius: float = RADIUS,
    focal: float = FOCAL,
    background: tuple[float, float, float] = WHITE,
) -> None:
    """Writes views of one scene side by side, without margins, to a .png, .webp or .jpg file.

    Args:
        path: The file.
        scene: One scene, B = 1.
        azimuths: Degrees; one view for each.
        size: Side of a view, pixels.
        elevation: Degrees above the horizon.
        radius: Distance of the cameras from the origin, scene units.
        focal: Focal length in image widths.
        background: RGB in [0, 1].
    """
    check_extension(path, STILL)
    images = look(scene, 1, azimuths, size, elevation, radius, focal, background=background)[0]
    _save(path, side_by_side(images))


def side_by_side(images: Float[Tensor, "V 3 H W"]) -> Image.Image:
    """Pictures in a row, without margins."""
    return Image.fromarray(np.concatenate(list(to_uint8(images)), axis=1))


def turntable(
    scene: Scene,
    frames: int = 36,
    size: int = 256,
    elevation: float = 20.0,
    radius: float = RADIUS,
    focal: float = FOCAL,
    background: tuple[float, float, float] = WHITE,
) -> list[Image.Image]:
    """One scene seen all around, in equal steps, beginning at azimuth 0; the last frame leads back to the first.

    Args:
        scene: One scene, B = 1.
        frames: Number of views.
        size: Side of a frame, pixels.
        elevation: Degrees above the horizon.
        radius: Distance of the camera from the origin, scene units.
        focal: Focal length in image widths.
        background: RGB in [0, 1].

    Raises:
        ValueError: If no frame is asked for.
    """
    azimuths = [360.0 * i / frames for i in range(frames)]
    images = look(scene, 1, azimuths, size, elevation, radius, focal, background=background)[0]
    return [Image.fromarray(x) for x in to_uint8(images)]


def save_turntable(path: str | Path, frames: Sequence[Image.Image], fps: float = 20.0, quality: int = 80) -> None:
    """Writes frames as an endless animation, .webp (small, many colours) or .gif (256 colours, opens anywhere).

    Or as a film, .mp4, which needs the extra `video`, and ends.

    Args:
        path: The file.
        frames: Pictures of one size.
        fps: Frames per second.
        quality: 0 to 100, of .webp.

    Raises:
        ValueError: If there is no frame, the extension is another one, or films cannot be written here.
    """
    suffix = check_extension(path, MOVING)
    if not frames:
        raise ValueError(f"cannot write {path}: an animation needs at least one frame")
    if suffix == ".mp4":
        write_mp4(path, frames, fps)
        return
    options = {"save_all": True, "append_images": list(frames[1:]), "duration": round(1000 / fps), "loop": 0}
    if suffix == ".webp":
        _save(path, frames[0], **options, quality=quality, method=4)
    else:
        _save(path, frames[0], **options, optimize=False, disposal=1)


def check_extension(path: str | Path, known: Sequence[str]) -> str:
    """The extension of a file to be written, in small letters.

    Raises:
        ValueError: If it is none of the known ones, or a film and films cannot be written here.
    """
    suffix = Path(path).suffix.lower()
    names = ", ".join(known)
    lacking = problem() if suffix == ".mp4" and suffix in known else None
    if lacking is not None:
        raise ValueError(f"cannot write {path}: {lacking}; or use another of {names}")
    if suffix in known:
        return suffix
    raise ValueError(f"cannot write {path}: unknown extension {suffix!r}; use one of {names}")


def _save(path: str | Path, picture: Image.Image, **options: object) -> None:
    """Writes a picture or animation; the file appears whole or not at all."""
    with replacing(path) as temporary:
        picture.save(temporary, **options)


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont, lines: int = 2) -> list[str]:
    """At most `lines` lines that fit `width` pixels; what is left out is marked by dots."""
    out, rest = [], " ".join(text.split())
    while rest and len(out) < lines:
        fit = len(rest)
        while fit > 1 and font.getlength(rest[:fit]) > width:
            fit -= 1
        if fit < len(rest) and len(out) == lines - 1:
            out.append(rest[: max(fit - 1, 1)].rstrip() + "\N{HORIZONTAL ELLIPSIS}")
            break
        cut = rest.rfind(" ", 1, fit + 1) if fit < len(rest) else fit
        cut = cut if cut > 0 else fit
        out.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return out
