"""What every rasteriser backend has to agree on."""

from __future__ import annotations

from dataclasses import dataclass

MAX_SIDE = 32767  # pixels; bounding boxes are kept in 16 bits


@dataclass(frozen=True)
class RasterConfig:
    """How Gaussians become pixels. Never mix two of these between training and reward."""

    eps2d: float = 0.0  # pixels^2 added to each projected variance; 0 draws sub-pixel splats as they are
    antialias: bool = False  # scale opacity so that eps2d does not change a splat's total light
    near: float = 0.01  # camera z in scene units; Gaussians whose centre is not beyond it are not drawn
    alpha_min: float = 1 / 255  # splats fainter than this at a pixel are skipped there
    alpha_max: float = 0.99  # opacity of one splat at one pixel is cut here; beyond it shape gets no gradient
    t_min: float = 1e-4  # a pixel is finished before the splat that would leave less light than this
    normalize_quats: bool = True  # False evaluates the rotation polynomial on raw quaternions, as DiffSplat does

    def __post_init__(self) -> None:
        if not 0 <= self.eps2d < float("inf"):
            raise ValueError(f"raster.eps2d must be 0 or more pixels^2, got {self.eps2d}")
        if not 0 < self.near < float("inf"):
            raise ValueError(f"raster.near must be positive, got {self.near}")
        if not 1e-4 <= self.alpha_min < self.alpha_max < 1:
            raise ValueError(
                f"raster needs 1e-4 <= alpha_min < alpha_max < 1, got {self.alpha_min} and {self.alpha_max}"
            )
        if not 0 < self.t_min < 1:
            raise ValueError(f"raster.t_min must be between 0 and 1, got {self.t_min}")


DEFAULT = RasterConfig()
