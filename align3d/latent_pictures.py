"""Latents as a scene: one picture, or the views of a ring, that nothing holds together but the prior."""

from __future__ import annotations

import sys
from functools import cache, partial
from typing import TYPE_CHECKING

from torch import nn

from align3d.files import atomic_write, replacing
from align3d.rng import Streams
from align3d.scenes.cameras import to_device
from align3d.subjects import Distilled, Shown
from align3d.types import Look, Prior

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from jaxtyping import Float
    from torch import Tensor

    from align3d.types import Cameras, CameraSampler

SQUARE = 1.02  # most of a picture's longer side by its shorter one that is squeezed to a square
FIXED = Streams.batch(0, 0, 0, 1)  # of the cameras of latents, which never move


def picture_of(path: Path, size: int, background: Sequence[float]) -> Float[Tensor, "3 S S"]:
    """The picture of a file as a prior takes it; says on standard error what had to be done to it.

    Args:
        path: .png, .jpg or .webp.
        size: Side of the prior's pictures.
        background: RGB in [0, 1], behind it where it is transparent.

    Raises:
        FileNotFoundError, ValueError: If it cannot be read, or is no square: it would be squeezed into one.
    """
    from align3d.rewards.preprocess import resize
    from align3d.scenes.picture_files import is_transparent, read_picture

    picture = read_picture(path, background)
    height, width = picture.shape[1:]
    if max(height, width) > SQUARE * min(height, width):
        raise ValueError(
            f"{path} has {width} x {height} pixels, the prior paints squares of {size} x {size}; crop it to a square"
        )
    done = [f"brought from {width} x {height} to {size} x {size} pixels"] if (height, width) != (size, size) else []
    done += ["put on --background where it is transparent"] if is_transparent(path) else []
    if done:
        print(f"align3d: {path} is {' and '.join(done)}", file=sys.stderr)
    return resize(picture[None], size).clamp(0, 1)[0]


class Latents(nn.Module):
    """V latents of a prior."""

    def __init__(self, start: Float[Tensor, "1 V *L"], rate: float = 1e-2) -> None:
        """Those to begin with.

        Args:
            start: The latents.
            rate: Their learning rate.
        """
        super().__init__()
        self.latents, self.rate = nn.Parameter(start.detach().clone()), rate

    def rates(self) -> dict[str, float]:
        """Their learning rate."""
        return {"latents": self.rate}


class LatentPictures(Distilled):
    """Latents under a prior; a Subject that asks for no rendering and no encoder.

    Args:
        scene: What trains.
        prior: What teaches.
        cameras: From randomness to cameras; those of one fixed draw, as the prior may ask for them.
        original: The latents that are edited, as they were.
        made_of: Hashes of the files that the latents were made of, by name.
    """

    def __init__(
        self,
        scene: Latents,
        prior: Prior,
        cameras: CameraSampler,
        original: Float[Tensor, "1 V *L"] | None = None,
        made_of: dict[str, str] | None = None,
    ) -> None:
        super().__init__(scene, prior, cameras, made_of=made_of)
        self.before = original
        self.fixed = to_device(cameras(FIXED), scene.latents)

    def look(self, rng: Streams) -> Look:
        """The latents, once for every stream."""
        rows = len(rng)
        return Look(self.trained.latents.expand(rows, *self.trained.latents.shape[1:]), self.seen(rows))

    @property
    def source(self) -> Callable[[Streams, Look], Float[Tensor, "B V *L"]] | None:
        """Gives the latents as they were, once for every stream; None if they began as noise."""
        before = self.before
        return None if before is None else lambda rng, look: before.expand(len(rng), *before.shape[1:])

    def seen(self, rows: int) -> Cameras:
        """The fixed cameras, once for every row."""
        from dataclasses import replace

        c2w, K = (x.expand(rows, *x.shape[1:]) for x in (self.fixed.c2w, self.fixed.K))
        return replace(self.fixed, c2w=c2w, K=K)

    def scene(self) -> Shown:
        """What the latents show, by the prior's own decoder."""
        return Shown(self.prior.images(self.trained.latents), self.fixed, flat=True)

    def files(self) -> dict[str, Callable[[Path], None]]:
        """The views, each a picture, and the latents; they are decoded when the first is written."""
        from PIL import Image
        from safetensors.torch import save

        from align3d.scenes.pictures import to_uint8

        decoded = cache(lambda: to_uint8(self.scene().rgb[0]))
        views = self.trained.latents.shape[1]
        names = ["picture.png"] if views == 1 else [f"picture-{i}.png" for i in range(views)]

        def draw(i: int, path: Path) -> None:
            with replacing(path) as temporary:
                Image.fromarray(decoded()[i]).save(temporary, format="PNG")

        def keep(path: Path) -> None:
            atomic_write(path, save({"latents": self.trained.latents.detach().cpu().contiguous()}))

        return {name: partial(draw, i) for i, name in enumerate(names)} | {"latents.safetensors": keep}
