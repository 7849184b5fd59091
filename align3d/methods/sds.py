"""SDS: score distillation sampling (Poole et al. 2023, arXiv 2209.14988), with RewardSDS's choice of noises.

g = (1 - alpha_bar_t) (eps_hat(x_t; guidance) - eps)
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
        """(1 - alpha_bar) (eps_hat - eps)."""
        from align3d.diffusion.guidance import guide
        from align3d.diffusion.schedule import bcast

        weight = bcast(subject.schedule.sigma(rows.t) ** 2, rows.x)
        return weight * (guide(rows.positive, rows.negative, self.guidance) - rows.noise)
