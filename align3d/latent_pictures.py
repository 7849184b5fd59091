"""Latents as a scene: one picture, or the views of a ring, that nothing holds together but the prior."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from align3d.rng import Streams
from align3d.scenes.cameras import to_device
from align3d.subjects import Distilled, Shown
from align3d.types import Look, Prior

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from jaxtyping import Float
    from torch import Tensor

    from align3d.types import Cameras, CameraSampler

FIXED = Streams.batch(0, 0, 0, 1)  # of the cameras of latents, which never move


class Latents(nn.Module):
    """V latents of a prior."""

    def __init__(self, start: Float[Tensor, "1 V *L"]) -> None:
        super().__init__()
        self.latents = nn.Parameter(start.detach().clone())

    def rates(self) -> dict[str, float]:
        """Their learning rate, the published one."""
        return {"latents": 1e-2}


class LatentPictures(Distilled):
    """Latents under a prior; a Subject that asks for no rendering and no encoder.

    Args:
        scene: What trains.
        prior: What teaches.
        cameras: From randomness to cameras; those of one fixed draw, as the prior may ask for them.
    """

    def __init__(self, scene: Latents, prior: Prior, cameras: CameraSampler) -> None:
        super().__init__(scene, prior, cameras)
        self.fixed = to_device(cameras(FIXED), scene.latents)

    def look(self, rng: Streams) -> Look:
        """The latents, once for every stream."""
        rows = len(rng)
        return Look(self.trained.latents.expand(rows, *self.trained.latents.shape[1:]), self.seen(rows))

    def seen(self, rows: int) -> Cameras:
        """The fixed cameras, once for every row."""
        from dataclasses import replace

        c2w, K = (x.expand(rows, *x.shape[1:]) for x in (self.fixed.c2w, self.fixed.K))
        return replace(self.fixed, c2w=c2w, K=K)

    def scene(self) -> Shown:
        """What the latents show, by the prior's own decoder."""
        return Shown(self.prior.images(self.trained.latents), self.fixed, flat=True)

    def files(self) -> dict[str, Callable[[Path], None]]:
        """The views, each a picture, and the latents."""
        from PIL import Image
        from safetensors.torch import save_file

        from align3d.scenes.pictures import to_uint8

        pictures = to_uint8(self.scene().rgb[0])
        names = ["picture.png"] if len(pictures) == 1 else [f"picture-{i}.png" for i in range(len(pictures))]

        def drawn(i: int) -> Callable[[Path], None]:
            return lambda path: Image.fromarray(pictures[i]).save(path, format="PNG")

        found: dict[str, Callable[[Path], None]] = {name: drawn(i) for i, name in enumerate(names)}
        latents = {"latents": self.trained.latents.detach().cpu().contiguous()}
        return found | {"latents.safetensors": lambda path: save_file(latents, path)}
