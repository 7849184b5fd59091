"""A batch of scenes made of 3D Gaussians."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from align3d.scenes.raster import DEFAULT, RasterConfig, check_gaussians, rasterize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from jaxtyping import Float
    from torch import Tensor

    from align3d.types import Cameras, Views


@dataclass(frozen=True)
class Gaussians:
    """B scenes of N Gaussians each; a Scene."""

    means: Float[Tensor, "B N 3"]  # world frame
    quats: Float[Tensor, "B N 4"]  # w, x, y, z; unit length unless raster.normalize_quats says otherwise
    scales: Float[Tensor, "B N 3"]  # standard deviations in scene units, positive
    opacities: Float[Tensor, "B N"]  # in [0, 1]
    colors: Float[Tensor, "B N 3"]  # RGB in [0, 1]
    raster: RasterConfig = DEFAULT  # how these Gaussians are meant to be drawn
    backend: str = "auto"  # native, torch, gsplat, or auto

    def __post_init__(self) -> None:
        check_gaussians(*self.tensors)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Means, quats, scales, opacities and colors."""
        return self.means, self.quats, self.scales, self.opacities, self.colors

    def __len__(self) -> int:
        """The number of scenes, B."""
        return self.means.shape[0]

    def render(
        self,
        cameras: Cameras,
        want: Sequence[str] = ("rgb", "alpha"),
        background: Sequence[float] = (1.0, 1.0, 1.0),
        shift: Float[Tensor, "B V N 2"] | None = None,
    ) -> Views:
        """What the cameras see; see `rasterize`.

        Raises:
            ValueError: If there are not as many rows of cameras as scenes, or a channel is unknown.
        """
        if cameras.c2w.shape[0] != len(self):
            raise ValueError(
                f"{len(self)} scenes need cameras (B = {len(self)}, V), got B = {cameras.c2w.shape[0]}; "
                "expand the cameras or index the scene"
            )
        how = {"config": self.raster, "backend": self.backend, "shift": shift}
        return rasterize(*self.tensors, cameras, want=want, background=background, **how)

    def index(self, which: int | slice | Sequence[int]) -> Gaussians:
        """Some of the scenes, with the batch axis kept. Gradient: to the chosen rows."""
        rows = slice(which, which + 1 or None) if isinstance(which, int) else which
        if isinstance(which, int) and not -len(self) <= which < len(self):
            raise ValueError(f"scene {which} asked for, but there are only {len(self)}")
        return self._map(lambda x: x[rows])

    def to(self, device: torch.device | str) -> Gaussians:
        """The same scenes on another device."""
        return self._map(lambda x: x.to(device))

    def detach(self) -> Gaussians:
        """The same scenes without their graph."""
        return self._map(lambda x: x.detach())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Gaussians:
        names = ("means", "quats", "scales", "opacities", "colors")
        return replace(self, **{name: function(getattr(self, name)) for name in names})
