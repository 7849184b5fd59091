"""SDS: score distillation sampling (Poole et al. 2023, DreamFusion, arXiv 2209.14988, eq. 3), with RewardSDS's choice.

    g = w(t) (eps_hat(x_t; y, guidance) - eps)

The published code of RewardSDS (2D: `sds_loss`; 3D: `recon_loss: false`) is the same with w = 1 - alpha_bar.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from align3d.methods.candidates import Noised
from align3d.methods.distillation import Distillation
from align3d.types import Subject

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class SDS(Distillation):
    """SDS: pull the scene to where the prior would denoise it; high guidance, smooth and saturated."""

    def gradient(self, subject: Subject, rows: Noised) -> Float[Tensor, "R V *L"]:
        """What the prior finds too much in the noise."""
        return self.w(subject, rows) * (rows.guided(self.guidance) - rows.noise)
