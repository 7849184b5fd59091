"""What a field is penalised for, on its own: scalars, each the mean over rows of views."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from align3d.scenes.nerf.volume import Pixels


def orient(pixels: Pixels, rows: int) -> Float[Tensor, ""]:
    """Normals that face away from the camera: sum of sg(w) relu(n . d)^2 by the rays that hit something."""
    hit = (pixels.alpha > 0).float().view(rows, -1).sum(1).clamp_min(1)
    return (pixels.away.view(rows, -1).sum(1) / hit).mean()


def sparsity(pixels: Pixels, rows: int) -> Float[Tensor, ""]:
    """All that is opaque: sqrt(opacity^2 + 0.01)."""
    return (pixels.alpha.square() + 0.01).sqrt().mean()


def opaque(pixels: Pixels, rows: int) -> Float[Tensor, ""]:
    """What is half transparent: the entropy of the opacity."""
    o = pixels.alpha.clamp(1e-3, 1 - 1e-3)
    return -(o * o.log() + (1 - o) * (1 - o).log()).mean()


def z_variance(pixels: Pixels, rows: int) -> Float[Tensor, ""]:
    """Spread along the rays that are more opaque than not."""
    solid = (pixels.alpha > 0.5).float().view(rows, -1)
    return ((pixels.variance.view(rows, -1) * solid).sum(1) / solid.sum(1).clamp_min(1)).mean()


def weighed(pixels: Pixels, rows: int, weights: dict[str, float]) -> dict[str, Tensor]:
    """The penalties that have a weight, times it; rows have as many rays. Gradient: to the pixels."""
    terms = {"orient": orient, "sparsity": sparsity, "opaque": opaque, "z_variance": z_variance}
    return {name: weight * terms[name](pixels, rows) for name, weight in weights.items()}
