"""NFSD: noise-free score distillation (Katzir et al. 2024, arXiv 2310.17590).

    delta_C = eps(x_t; y) - eps(x_t; "")
    delta_D = eps(x_t; "")                     where t < 0.2
              eps(x_t; "") - eps(x_t; bad)     elsewhere
    g = w(t) (delta_D + guidance delta_C)

The noise that was added is not subtracted: what the prior says of faults takes its place, so that usual guidance does.
The published 2D code of SDS-Bridge (`nfsd_loss`) is the same with a guidance of 100.
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

LITTLE = 0.2  # time below which the unconditional prediction is taken to be free of noise


@dataclass(frozen=True)
class NFSD(Distillation):
    """NFSD: SDS without the noise in its gradient; usual guidance, less smooth."""

    guidance: float = 7.5  # of the prior in the loss
    bad: str = "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy"
    """text of faults"""

    def gradient(self, subject: Subject, rows: Noised) -> Float[Tensor, "R V *L"]:
        """Towards the text, and away from faults."""
        from align3d.diffusion.schedule import bcast

        (faults,) = self.explore.predict(subject, rows.x, rows.t, [[self.bad] * len(rows.x)], rows.cameras)
        to_text = rows.positive - rows.negative
        to_good = rows.negative - bcast((rows.t >= LITTLE).to(rows.x), rows.x) * faults
        return self.w(subject, rows) * (to_good + self.guidance * to_text)
