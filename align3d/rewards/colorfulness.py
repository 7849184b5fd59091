"""Colourfulness of the object: how strong and how varied its colours are, by Hasler & Suesstrunk's formula.

Source: Hasler & Suesstrunk 2003, "Measuring colourfulness in natural images", equation M3:
rg = R - G, yb = (R + G) / 2 - B, C = sqrt(var rg + var yb) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2).
The paper has R, G, B in 0..255; ours are in [0, 1], so 255 times our value is the paper's (0 grey, 33 moderate,
109 extreme). Means are over the object, weighted by alpha: a background of any size does not dilute it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.types import Views

EPS = 1e-4  # rounds off the two square roots at grey, where their slope has no limit; the value falls by at most 2 EPS


@dataclass(frozen=True)
class Colorfulness:
    """Colourfulness on the foreground: 0 for grey, 0.43 for what people call extremely colourful."""

    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"rgb", "alpha"})

    def __call__(self, views: Views, prompts: Sequence[str]) -> Float[Tensor, "B V"]:
        """The colourfulness of each view, 0 for an empty one; the prompts are not read.

        Gradient: to the colours; alpha is a constant weight, so that growing or vanishing earns nothing.
        """
        views.require("rgb", "alpha", by="reward colorfulness")
        red, green, blue = views.rgb.unbind(2)
        rg, yb = red - green, (red + green) / 2 - blue
        weight = views.alpha.detach().squeeze(2)
        weight = weight / weight.sum((-2, -1), keepdim=True).clamp_min(1e-6)

        def mean(x: Tensor) -> Tensor:
            return (x * weight).sum((-2, -1))

        def root(x: Tensor) -> Tensor:
            return (x + EPS**2).sqrt() - EPS

        mu_rg, mu_yb = mean(rg), mean(yb)
        var = mean((rg - mu_rg[..., None, None]) ** 2) + mean((yb - mu_yb[..., None, None]) ** 2)
        return root(var) + 0.3 * root(mu_rg**2 + mu_yb**2)
