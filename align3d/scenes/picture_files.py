"""Picture files as tensors; a file is not trusted, and nothing large is allocated before its size is known."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps

from align3d.scenes.cameras import MAX_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")  # the only decoders that a file gets to see, whatever its name
MAX_BYTES = 1 << 28  # of a file
MAX_PIXELS = 1 << 25  # of a picture: 0.4 GB in float32, and as much again on the way there


def read_picture(path: str | Path, background: Sequence[float] = (1.0, 1.0, 1.0)) -> Float[Tensor, "3 H W"]:
    """A picture as it is meant to be seen: upright, its first frame, on a background where it is transparent.

    Gray of 16 bit keeps them; of colours of 16 bit, the decoder keeps 8. Colour profiles are not applied.

    Args:
        path: A .png, .jpg or .webp file.
        background: RGB in [0, 1].

    Returns:
        Colours in [0, 1] on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no sound picture of these kinds, or too large.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no picture {path}")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than a picture may have ({MAX_BYTES})")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are refused below, and of odd metadata
            with Image.open(path, formats=FORMATS) as picture:
                _check_size(path, picture)
                picture.load()
                pixels = _pixels(ImageOps.exif_transpose(picture), background)
    except (MemoryError, _TooLarge):
        raise
    except Image.DecompressionBombError:
        raise _TooLarge(f"{path} has more pixels than are read ({MAX_PIXELS}); shrink it") from None
    except Exception as error:  # decoders raise all kinds: OSError, SyntaxError, struct.error, ...
        said = " ".join(str(error).split()) or type(error).__name__
        names = ", ".join(PICTURES)
        raise ValueError(f"{path} is no sound picture ({said}); give a whole {names} file") from None
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def is_transparent(path: str | Path) -> bool:
    """Whether a picture that `read_picture` has read can be seen through anywhere."""
    with Image.open(path, formats=FORMATS) as picture:
        if not _has_alpha(picture):
            return False
        return picture.convert("RGBA").getextrema()[3][0] < 255


class _TooLarge(ValueError):
    """A picture that is sound, as far as one can see, and not read."""


def _check_size(path: Path, picture: Image.Image) -> None:
    width, height = picture.size
    if max(width, height) > MAX_SIZE or width * height > MAX_PIXELS:
        most = f"at most {MAX_SIZE} on a side and {MAX_PIXELS} in all are read"
        raise _TooLarge(f"{path} has {width} x {height} pixels, {most}; shrink it")


def _has_alpha(picture: Image.Image) -> bool:
    return picture.mode[-1] in "Aa" or "transparency" in picture.info


def _pixels(picture: Image.Image, background: Sequence[float]) -> Float[np.ndarray, "H W 3"]:
    """Colours in [0, 1], float32."""
    if picture.mode[0] in "IF":  # gray of 16 bit, which Pillow would cut off at 255
        gray = np.asarray(picture).astype(np.float32) / 65535
        return np.repeat(gray.clip(0, 1)[..., None], 3, axis=-1)
    if not _has_alpha(picture):
        return np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    seen = np.asarray(picture.convert("RGBA"), dtype=np.float32) / 255
    alpha = seen[..., 3:]
    return seen[..., :3] * alpha + np.asarray(background, dtype=np.float32) * (1 - alpha)
