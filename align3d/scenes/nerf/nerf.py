"""A neural radiance field that is optimised, and the scene that it is."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from align3d.scenes.cameras import to_device
from align3d.scenes.nerf import penalties
from align3d.scenes.nerf.background import Background, behind
from align3d.scenes.nerf.fields import Field, begin
from align3d.scenes.nerf.shading import lit
from align3d.scenes.nerf.volume import DIAGONAL, Pixels, Rays, Samples, along, joined, trace
from align3d.types import CHANNELS, Cameras, Views

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from align3d.rng import Streams
    from align3d.scenes.nerf.options import NerfOptions

POINTS = 1 << 19  # steps of rays that are held at once in a picture
CELLS = 1 << 17  # points of cells that are looked at at once


class Nerf(nn.Module):
    """A field, what is behind it, and which of its cells are empty; in `eval` mode, those stay as they are.

    `taken` holds the share of light that each cell takes in one step. It is a parameter so that checkpoints and files
    keep it with the rest; it never gets a gradient, and an optimiser leaves alone what has none.
    """

    def __init__(self, options: NerfOptions, mesh: int = 0, texture: int = 0) -> None:
        """Without values; `begun` gives some.

        Args:
            options: Of the field.
            mesh: Cells along a side of the mesh among the files; 0: none.
            texture: Side of the picture on that, pixels; 0: colours at its vertices.
        """
        super().__init__()
        self.options, self.mesh, self.texture = options, mesh, texture
        self.field = Field(options)
        self.background = Background() if options.backdrop.kind == "learned" else None
        self.taken = nn.Parameter(torch.zeros(options.march.cells**3))
        self.looked: int | None = None  # the update in which the cells were looked at

    @classmethod
    def begun(cls, options: NerfOptions, generator: torch.Generator, mesh: int = 0, texture: int = 0) -> Nerf:
        """One with the first values, drawn on the CPU."""
        nerf = cls(options, mesh, texture)
        for part in (nerf.field, nerf.background):
            if part is not None:
                begin(part, generator)
        nerf.see(torch.arange(options.march.cells**3), generator)
        return nerf

    def rates(self) -> dict[str, float]:
        """Learning rates of the parts."""
        rates = {"field.grid": self.options.grid_rate, "field": self.options.net_rate}
        return rates | ({"background": self.options.net_rate} if self.background is not None else {})

    @property
    def full(self) -> Bool[Tensor, "G G G"]:
        """Which cells may have something in them; all, before the first look."""
        march, taken = self.options.march, self.taken.detach()
        return (taken >= taken.mean().clamp(max=march.empty)).view(march.cells, march.cells, march.cells)

    @property
    def prune(self) -> float:
        """As the option says, or less where all is thin: something has to have a gradient."""
        return min(self.options.march.prune, float(self.taken.detach().mean()))

    def look(self, rng: Streams) -> None:
        """See which cells are empty, in some updates: the same cells for all batches of an update.

        Source: nerfacc's OccGridEstimator: max(decay * before, now), at a random point of each cell.
        """
        march = self.options.march
        if rng.step < 0 or rng.step % march.every or rng.step == self.looked:
            return
        self.looked = rng.step
        generator, num = rng.common("cells"), march.cells**3
        if rng.step < march.warmup:
            return self.see(torch.arange(num), generator)
        some = torch.randint(num, (num // 4,), generator=generator)
        full = self.full.flatten().nonzero()[:, 0].cpu()
        more = full[torch.randint(len(full), (num // 4,), generator=generator)]
        return self.see(torch.cat([some, more]).unique(), generator)

    def see(self, which: Int[Tensor, "M"], generator: torch.Generator) -> None:
        """Look at a random point of each of some cells."""
        march = self.options.march
        corner = torch.stack([which // march.cells**2, which // march.cells % march.cells, which % march.cells], 1)
        x = (corner + torch.rand(corner.shape, generator=generator)) / march.cells * 2 - 1
        with torch.no_grad():
            now = torch.cat([self.field.density(part)[0] for part in x.to(self.taken).split(CELLS)])
            now = -torch.expm1(-now * DIAGONAL / march.samples)
            self.taken[which] = torch.maximum(self.taken[which] * march.decay, now)

    def samples(self, rays: Rays, jitter: Tensor | None = None) -> Samples:
        """Those of rays, outside empty cells."""
        return along(rays, self.options.march.samples, jitter, self.full)

    def shown(
        self, cameras: Cameras, rng: Streams, background: tuple[float, float, float]
    ) -> tuple[Float[Tensor, "B V 3 H W"], dict[str, Tensor]]:
        """What an update sees: with jitter, light and what is behind as the options say, and the field's penalties."""
        if self.training:
            self.look(rng)
        B, V, H, W = *cameras.c2w.shape[:2], cameras.height, cameras.width
        rays, light = Rays.of(cameras), lit(self.options.shading, cameras, rng)
        weights = self.options.penalties.weights(rng.step)
        jitter = rng.uniform("along rays", (V, H, W), like=rays.origin).flatten()
        pixels = trace(self.field, rays, self.samples(rays, jitter), self.prune, "orient" in weights, light)
        far = behind(self.options.backdrop, self.background, rays.direction, rng, background)
        rgb = pixels.rgb + (1 - pixels.alpha[:, None]) * far
        return rgb.view(B, V, H, W, 3).movedim(-1, 2), penalties.weighed(pixels, B, weights)

    def scene(self) -> NerfScene:
        """The scene as it is now; it changes as the field does."""
        return NerfScene(self)

    def files(self) -> dict[str, Callable[[Path], None]]:
        """scene.safetensors; and mesh.glb with what belongs to it, if there is to be a mesh and it has a surface."""
        from align3d.scenes.nerf.files import write_meshes, write_only

        found = {"scene.safetensors": lambda path: write_only(path, self)}
        return found | ({"mesh.glb": lambda path: write_meshes(path, self)} if self.mesh else {})


@dataclass(frozen=True)
class NerfScene:
    """One field, for any number of rows of cameras; a Scene."""

    nerf: Nerf
    points: int = POINTS  # steps of rays that are held at once

    def render(
        self, cameras: Cameras, want: Sequence[str] = ("rgb", "alpha"), background: Sequence[float] = (1.0, 1.0, 1.0)
    ) -> Views:
        """What the cameras see: colours without light, on a plain background; in parts, so that large pictures fit.

        Raises:
            ValueError: If a channel is unknown.

        Gradient: to the field.
        """
        unknown = sorted(set(want) - set(CHANNELS))
        if unknown:
            raise ValueError(f"unknown channel {unknown[0]!r}; known: {', '.join(CHANNELS)}")
        nerf, cameras = self.nerf, to_device(cameras, self.nerf.taken)
        rays, size = Rays.of(cameras), max(1, self.points // nerf.options.march.samples)
        parts = [rays[first : first + size] for first in range(0, len(rays), size)]
        normals = "normal" in want
        pixels = joined([trace(nerf.field, part, nerf.samples(part), nerf.prune, normals) for part in parts])
        return Views(cameras, **channels(pixels, rays, cameras, want, background))

    def index(self, which: int | slice | Sequence[int]) -> NerfScene:
        """Itself: all rows are the same scene."""
        return self

    def to(self, device: torch.device | str) -> NerfScene:
        """The same scene on another device; a copy, if it is not there already."""
        here = self.nerf.taken.device
        return self if torch.device(device) == here else NerfScene(copy.deepcopy(self.nerf).to(device), self.points)


def channels(
    pixels: Pixels, rays: Rays, cameras: Cameras, want: Sequence[str], background: Sequence[float]
) -> dict[str, Any]:
    """The wanted channels of Views, (B, V, C, H, W)."""
    B, V = cameras.c2w.shape[:2]
    made = {
        "rgb": lambda: pixels.rgb + (1 - pixels.alpha[:, None]) * pixels.rgb.new_tensor(background),
        "alpha": lambda: pixels.alpha[:, None],
        "depth": lambda: (pixels.length * rays.depth)[:, None],
        "median_depth": lambda: (pixels.median * rays.depth)[:, None],
        "normal": lambda: pixels.normal,
    }
    return {
        name: made[name]().view(B, V, cameras.height, cameras.width, -1).movedim(-1, 2) for name in CHANNELS
        if name in want
    }  # fmt: skip
