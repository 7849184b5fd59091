"""Distillation by reconstructed latents, as MVDream does it (Shi et al. 2024, arXiv 2308.16512, x0-reconstruction).

    x0 = (x_t - sigma_t eps_hat) / alpha_t,  and x0_text the same with the prediction of the text alone
    x0 <- rescale (std(x0_text) / std(x0)) x0 + (1 - rescale) x0,  std over all views of a group
    g = z - x0

The same as SDS with w(t) = sigma_t / alpha_t but for the rescaling, which takes back the contrast that guidance adds
(Lin et al. 2024, arXiv 2305.08891, section 3.4). Recommended levels: t_min 0.98 to 0.02 and t_max 0.98 to 0.5 over four
fifths of the run. The published 3D code of RewardSDS (`recon_loss: true`) is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from align3d.methods.candidates import Noised, clean
from align3d.methods.distillation import Distillation
from align3d.types import Subject

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

TINY = 1e-8  # added to deviations


@dataclass(frozen=True)
class Recon(Distillation):
    """Recon: pull the scene to the prior's clean picture of it, its contrast kept; for multi-view priors."""

    guidance: float = 50.0  # of the prior in the loss
    weight: Literal["variance", "uniform", "fantasia3d"] = "uniform"  # w(t): sigma^2; 1; or alpha sigma^2
    rescale: float = 0.5  # how far the contrast goes back to that without guidance; 0 = not at all, 1 = all the way

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale must be 0 to 1, got {self.rescale}")

    def gradient(self, subject: Subject, rows: Noised) -> Float[Tensor, "R V *L"]:
        """From the prior's clean latents to the scene's."""
        x0 = clean(subject, rows, self.guidance)
        factor = (deviation(clean(subject, rows, 1.0)) + TINY) / (deviation(x0) + TINY)
        x0 = self.rescale * factor * x0 + (1 - self.rescale) * x0
        return self.w(subject, rows) * (rows.z - x0)


def deviation(x0: Float[Tensor, "R V *L"]) -> Float[Tensor, "R *ones"]:
    """The standard deviation of each group of views."""
    return x0.std(tuple(range(1, x0.ndim)), keepdim=True)
