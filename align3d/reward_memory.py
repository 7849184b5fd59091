"""Rewards that go by what a run has seen: what they see before its first update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from align3d.prompt_pool import draw
from align3d.rng import Streams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.types import BaseModel, Score

BEFORE = -1  # the step whose randomness comes before the first update
MEASURED = 32  # samples
AT_A_TIME = 4  # of them


def measure(
    reward: Any, model: BaseModel, score: Score, times: Float[Tensor, "T"], prompts: Sequence[str], seed: int
) -> None:
    """Show a reward samples of the model as it is.

    They are the same in all processes and for all batch sizes; sums of all processes are averaged, as on a GPU they may
    differ in their last bits.

    Args:
        reward: As rewards.combined.Combined; it is inside of `score`.
        model: The generator.
        score: Scenes to rewards.
        times: Of the sampler.
        prompts: The pool.
        seed: Of the run.

    Raises:
        ValueError: If the reward cannot be scaled.
    """
    import torch

    from align3d import distributed
    from align3d.diffusion.sampler import rollout

    with torch.no_grad(), reward.measuring():
        for first in range(0, MEASURED, AT_A_TIME):
            rng = Streams.batch(seed, BEFORE, first, AT_A_TIME)
            texts = draw(prompts, rng)
            x0 = rollout(model, texts, times, rng, keep=False).x[:, -1]
            score(model.decode(x0), texts, rng)
        reward.advance(distributed.average_numbers(reward.seen()))
