"""Films as .mp4 files: H.264, which opens anywhere. Needs the extra `video` (PyAV)."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from align3d.files import replacing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

CODEC = "libx264"
# Constant rate factor: 18 is hard to tell from the original. With mbtree, the same frames gave up to five different
# files of the same length in 60 tries.
QUALITY = {"crf": "18", "preset": "medium", "x264-params": "no-mbtree=1"}
EXACT = {"fflags": "+bitexact", "movflags": "+faststart"}  # no date in it; its table of contents at the front
SD = 5  # AVCOL_SPC_BT470BG, the matrix that the conversion from RGB takes: players are told


def problem() -> str | None:
    """Why films cannot be written here, in a few words; None if they can."""
    try:
        from av import codecs_available
    except ImportError:
        return "av is not installed; pip install 'align3d[video]'"
    return None if CODEC in codecs_available else f"the installed av has no encoder {CODEC}"


def write_mp4(path: str | Path, frames: Sequence[Image.Image], fps: float = 20.0) -> None:
    """Write frames as a film; the same frames are the same file. It appears whole or not at all.

    Args:
        path: The .mp4 file.
        frames: RGB pictures of one size; odd sides are made even by repeating the last row or column.
        fps: Frames per second.

    Raises:
        ValueError: If there is no frame, their sizes differ, or films cannot be written here.
    """
    lacking = problem()
    if lacking is not None:
        raise ValueError(f"cannot write {path}: {lacking}")
    if not frames or len({frame.size for frame in frames}) > 1:
        raise ValueError(f"cannot write {path}: a film needs frames of one size, got {len(frames)}")
    import av

    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4", options=EXACT) as file:
        stream = file.add_stream(CODEC, rate=Fraction(fps).limit_denominator(1000), options=QUALITY)
        stream.width, stream.height = (side + side % 2 for side in frames[0].size)
        stream.pix_fmt = "yuv420p"  # what browsers and phones play
        stream.codec_context.thread_count = 1  # threads would change the bits from machine to machine
        stream.codec_context.colorspace = SD
        for frame in frames:
            more = (0, stream.height - frame.height), (0, stream.width - frame.width), (0, 0)
            pixels = np.pad(np.asarray(frame.convert("RGB")), more, "edge")
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
