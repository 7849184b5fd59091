"""SDS-Bridge in two stages (McAllister et al. 2024, Rethinking Score Distillation as a Bridge, arXiv 2406.09417).

    stage one:  g = w(t) (eps_hat(x_t; y, guidance) - eps),  as SDS
    stage two:  g = w(t) guidance (eps(x_t; y + target) - eps(x_t; y + source))

The second stage leads from what the scene looks like by then, in words, to what it should look like; nothing is
subtracted for the noise. Candidates are explored with the texts of the stage, and judged for y alone.

The published 2D code of RewardSDS (`bridge_stage_two`) is the same, but that its two suffixes cannot be given, and that
stage two begins with update 500 whatever the length of the run. The 3D code of SDS-Bridge has no w(t) in stage two
(`weight="uniform"`), a guidance of 100, and "." for the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from align3d.methods.candidates import Noised
from align3d.methods.distillation import Distillation
from align3d.types import Subject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Bridge(Distillation):
    """SDS-Bridge: SDS first, then away from the faults that SDS leaves, as words name them."""

    guidance: float = 40.0  # of the prior in stage one; factor of the difference in stage two
    stage_two: int = 500  # update that stage two begins with, half of the run as published
    target: str = ", detailed high resolution, high quality, sharp"  # what stage two appends to the prompt
    source: str = ", oversaturated, smooth, pixelated, cartoon, foggy, hazy, blurry, bad structure, noisy, malformed"
    """what it appends for what it leads away from"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage_two < 0:
            raise ValueError(f"stage_two must be 0 or more, got {self.stage_two}")

    def texts(self, prompts: Sequence[str], update: int) -> tuple[list[str], list[str]]:
        """Prompt and negative prompt; in stage two, the prompt with either suffix."""
        if update < self.stage_two:
            return super().texts(prompts, update)
        return [prompt + self.target for prompt in prompts], [prompt + self.source for prompt in prompts]

    def gradient(self, subject: Subject, rows: Noised) -> Float[Tensor, "R V *L"]:
        """As SDS, then between the two texts."""
        if rows.update < self.stage_two:
            return self.w(subject, rows) * (rows.guided(self.guidance) - rows.noise)
        return self.w(subject, rows) * self.guidance * (rows.positive - rows.negative)
