"""What the published code of RewardSDS does otherwise than align3d, for `compat="reference"`.

One picture (V = 1) is done as its 2D_experiments, several views as its threestudio-reward-sds. Levels are the entries
0 to 999 of the prior's table. Source: github.com/itaychachy/RewardSDS, eadddef, guidance.py (`sample_timestep`,
`explore_direction`) and reward_mvdream_guidance.py (`diffusion_denoising_loop`, `explore_direction`); recorded numbers:
tests/data/rewardsds.

Not brought back: numbers that are not finite are an error, not 0; the softmax over rewards does not overflow; rewards
see pictures in floating point, not in 8 bits.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from align3d.methods.candidates import Explore, Noised
from align3d.methods.weighting import Weighting
from align3d.types import Score, Subject

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from align3d.rng import Streams

LEVELS = 1000  # in the published priors' tables


def check(schedule: Any, explore: Explore) -> None:
    """Refuse what the published code has no numbers for.

    Raises:
        ValueError: If the prior is of another kind, or the grid is not within its table.
    """
    if getattr(schedule, "num_steps", None) != LEVELS:
        raise ValueError(f"compat reference needs a prior with a table of {LEVELS} noise levels; use compat none")
    if explore.candidates > 1 and not 2 <= explore.steps <= LEVELS // 2:
        raise ValueError(
            f"compat reference takes 2 to {LEVELS // 2} for explore.steps, 15 as published; got {explore.steps}"
        )


def level(low: float, high: float, num: int, rng: Streams, purpose: str) -> Float[Tensor, ""]:
    """One noise level for all rows of all processes, as a time.

    Args:
        low: Least, 0 to 1.
        high: Most.
        num: Levels of the grid: of 500 they are 1, 3, ..., 999, all from `low` of them up to but without `high` of
            them. 0: all integers from 1000 low to 1000 high, truncated, both included, as of the 3D code and of VSD.
        rng: The draw is `common`.
        purpose: Of the draw.
    """
    import torch

    if num:
        first = int(num * low) if low > 0 else 1
        last = int(num * high) if high < 1 else num
        index = torch.randint(first, max(last, first + 1), (), generator=rng.common(purpose))
        index = 1 + index * (LEVELS // num)
    else:
        index = torch.randint(int(LEVELS * low), int(LEVELS * high) + 1, (), generator=rng.common(purpose))
    return index.clamp(max=LEVELS - 1).double() / (LEVELS - 1)


def path(start: int, steps: int, views: int) -> list[tuple[int, int]]:
    """The levels that candidates of level `start` walk over: where each step begins and where it ends.

    In 2D: the grid 1, 1 + r, ..., r = 1000 // steps, from the first entry that is not above `start`, although the
    latents have the noise of `start`. In 3D: `start`, then the entries of a grid from 0 to 999 that are below. Both end
    at level 0, which has a little noise.
    """
    if views == 1:
        gap = LEVELS // steps
        grid = [1 + gap * k for k in reversed(range(steps))]
        return [(s, max(s - gap, 0)) for s in grid if s <= start]
    grid = [(LEVELS - 1) * k // (steps - 1) for k in reversed(range(steps))]
    stops = [start, *(s for s in grid if s < start)]
    return list(itertools.pairwise(stops))


def quirks(explore: Explore, weighting: Weighting, guidance: float, views: int) -> tuple[Explore, Weighting]:
    """How candidates are judged and weighed in the published code.

    In 2D, the gradients of M candidates are divided by M. In 3D, the walk has the guidance of the loss.
    """
    values = {f.name: getattr(explore, f.name) for f in fields(explore)}
    if views > 1:
        values["guidance"] = guidance
    return Published(**values), replace(weighting, zscore=False, per_loss=views == 1)


@dataclass(frozen=True)
class Published(Explore):
    """Candidates as the published code has them."""

    def walk(self, subject: Subject, noised: Noised) -> Float[Tensor, "R V *L"]:
        """Latents at level 0 after the published path; all rows have one level."""
        import torch

        from align3d.diffusion.transition import ddim

        start = int(subject.schedule.index(noised.t[:1]))
        for s, then in path(start, self.steps, noised.x.shape[1]):
            at, to = (torch.full_like(noised.t, k / (LEVELS - 1)) for k in (s, then))
            if s != start:
                positive, negative = self.predict(subject, noised.x, at, noised.texts, noised.cameras)
                noised = replace(noised, positive=positive, negative=negative)
            x = ddim(subject.schedule, noised.x, noised.guided(self.guidance), at, to, eta=0.0).mean
            noised = replace(noised, x=x)
        return noised.x

    def judged(
        self, subject: Subject, score: Score, noised: Noised, x0: Float[Tensor, "R V *L"], rng: Streams
    ) -> Float[Tensor, "N B"]:
        """One reward per candidate: of several views, the mean over all rows, though they are different scenes."""
        reward = super().judged(subject, score, noised, x0, rng)
        return reward if noised.x.shape[1] == 1 else reward.mean(1, keepdim=True).expand_as(reward)
