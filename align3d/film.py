"""How a scene came to be, as a film: one camera that turns slowly while updates go by.

frames/step-NNNNNN.webp             after NNNNNN updates; they stay, so that a run that goes on has them
optimization.mp4, or .webp          written at every end of a run
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from align3d.files import replacing

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

NAME = "optimization"  # of the film, without its extension
FORMATS = (".mp4", ".webp")  # the first that can be written here
NUMBERED = re.compile(r"step-(\d{6,12})\.webp")
TURN, TILT = 6.0, 20.0  # degrees from frame to frame, and above the horizon
STILL = 30.0  # degrees, of a camera that does not turn
FPS, HOLD = 12.0, 12  # frames per second; how often the last one is repeated
LARGEST = 1024  # pixels, side of a frame
QUALITY = 95  # of the frames that are kept, 0 to 100


@dataclass(frozen=True)
class Film:
    """A film of the run: how many frames it has, and how large they are."""

    frames: int = 60  # at most, evenly spaced; no less than half of them in a run with as many updates; 0 = no film
    size: int = 128  # side of a frame, pixels; pictures keep their own, if that is larger

    def __post_init__(self) -> None:
        if self.frames and not 2 <= self.frames <= 1000:
            raise ValueError(f"film.frames must be 2 to 1000, or 0 for no film, got {self.frames}")
        if not 16 <= self.size <= LARGEST:
            raise ValueError(f"film.size must be 16 to {LARGEST} pixels, got {self.size}")

    def stride(self, updates: int) -> int:
        """The updates from frame to frame: a power of two, so that a longer run needs no others than a shorter one."""
        stride = 1
        while updates // stride >= self.frames:
            stride *= 2
        return stride


@dataclass(frozen=True)
class Filming:
    """Keeps frames along a run, and makes the film of them; a hook for fit.

    A frame depends on the scene and on the number of updates alone: those of a run that was interrupted are the ones
    of a run that was not.
    """

    film: Film
    out: Path  # the run's folder
    updates: int | None  # of the whole run; None if it ends by the clock: then frames are thinned out as it goes on
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def due(self, done: int) -> bool:
        """Whether there is a frame after `done` updates."""
        return bool(self.film.frames) and done % self.stride(done) == 0

    def stride(self, done: int) -> int:
        """Updates from frame to frame, as far as is known after `done` of them."""
        return self.film.stride(done if self.updates is None else self.updates)

    def __call__(self, done: int, subject: Any) -> None:
        """Keep a frame."""
        with replacing(self.out / "frames" / f"step-{done:06}.webp") as path:
            self.frame(done, subject).save(path, "WEBP", quality=QUALITY, method=2)

    def frame(self, done: int, subject: Any) -> Image.Image:
        """What the camera sees after `done` updates."""
        import torch

        from align3d.scenes.pictures import look, side_by_side

        with torch.no_grad():
            scene, size = subject.scene(), self.film.size
            if getattr(scene, "flat", False):
                return fitting(side_by_side(scene.rgb[0]), size)
            azimuth = STILL if self.updates is None else TURN * done / self.stride(done)
            return side_by_side(look(scene, 1, [azimuth], size, TILT, background=self.background)[0])

    def develop(self, subject: Any, done: int) -> Path | None:
        """Make the film of a run that ends, for now, after `done` updates; removes the frames that are not in it.

        Returns:
            The file; None if the run has no film.
        """
        from align3d.scenes.pictures import save_turntable
        from align3d.scenes.video import problem

        if not self.film.frames:
            return None
        stride, kept = self.stride(done), {}
        for path in sorted((self.out / "frames").glob("step-*.webp")):
            named = NUMBERED.fullmatch(path.name)
            step = int(named[1]) if named else -1
            picture = opened(path) if 0 <= step <= done and step % stride == 0 else None
            if picture is None:
                path.unlink(missing_ok=True)
            else:
                kept[step] = picture
        frames = [kept[step] for step in sorted(kept)]
        if done not in kept:
            frames.append(self.frame(done, subject))
        frames = [frame.resize(frames[-1].size) for frame in frames] + [frames[-1]] * HOLD
        suffix = FORMATS[0] if problem() is None else FORMATS[1]
        save_turntable(self.out / (NAME + suffix), frames, FPS, quality=90)
        for other in set(FORMATS) - {suffix}:
            (self.out / (NAME + other)).unlink(missing_ok=True)
        return self.out / (NAME + suffix)


def fitting(picture: Image.Image, size: int) -> Image.Image:
    """A picture as a frame: whole pixels are repeated in small ones, and large ones shrink."""
    from PIL import Image

    times = max(1, min(size // picture.height, LARGEST // picture.width))
    picture = picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST)
    picture.thumbnail((LARGEST, LARGEST))
    return picture


def opened(path: Path) -> Image.Image | None:
    """A frame that was kept; None if it cannot be read: then it was not written to its end."""
    from PIL import Image

    try:
        with Image.open(path, formats=["WEBP"]) as picture:
            return picture.convert("RGB") if max(picture.size) <= LARGEST else None
    except (OSError, ValueError, SyntaxError):
        return None
