"""DDS: delta denoising score, for editing (Hertz et al. 2023, arXiv 2304.07090).

    g = eps_hat(x_t; y, guidance) - eps_hat(x0_t; y0, guidance)
    x_t = alpha_t z + sigma_t eps,  x0_t = alpha_t z0 + sigma_t eps

z0 are the latents of what is edited and y0 says what it shows; both have the same noise and level, so that what SDS
would do to the original, which should stay, is taken off. The paper has no w(t); `weight="variance"` gives SDS's.
RewardSDS edits so too (its section 4.3: 200 updates, 5 candidates, S = 1); its code for that is not published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from align3d.methods.candidates import Noised
from align3d.methods.distillation import Distillation
from align3d.types import Look, Subject

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from align3d.rng import Streams


@dataclass(frozen=True)
class DDS(Distillation):
    """DDS: edit a scene from what one text says to what another does, and leave the rest."""

    guidance: float = 7.5  # of the prior in the loss
    weight: Literal["variance", "uniform", "fantasia3d"] = "uniform"  # w(t): sigma^2; 1; or alpha sigma^2
    source: str = ""  # what the original shows

    def check(self, subject: Subject, times: Float[Tensor, "T"], group: int) -> None:
        """Refuse a subject that is not edited.

        Raises:
            ValueError: Says what is missing.
        """
        super().check(subject, times, group)
        if getattr(subject, "source", None) is None:
            raise ValueError("dds edits a scene that there is already; give --scene.start FILE")
        if not self.source.strip():
            raise ValueError("dds needs to be told what the original shows: give method.source")

    def gradient(self, subject: Subject, rows: Noised) -> Float[Tensor, "R V *L"]:
        """What the prior asks of the scene, less what it asks of the original."""
        from align3d.diffusion.guidance import guide
        from align3d.diffusion.schedule import add_noise

        x0 = add_noise(subject.schedule, rows.original, rows.noise, rows.t)
        texts = [self.source] * len(x0), rows.texts[1]
        of_original = guide(*self.explore.predict(subject, x0, rows.t, texts, rows.cameras), self.guidance)
        return self.w(subject, rows) * (rows.guided(self.guidance) - of_original)

    def original(self, subject: Subject, look: Look, rng: Streams) -> Float[Tensor, "B V *L"]:
        """What the look shows, as it was."""
        return subject.source(rng, look)
