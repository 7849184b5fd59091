"""What the methods have in common: the checked reward with its gradient, and the distance travelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from align3d.types import BaseModel, Score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor

    from align3d.rng import Streams

# The reward's own value has been found finite before its gradient is looked at.
NO_SLOPE = "the reward is finite there: look in it for a root, a norm or a quotient that has no slope at 0"


@dataclass(frozen=True)
class Scored:
    """The rewards of a batch."""

    reward: Float[Tensor, "B"]  # float32 or better; with its gradient, if the samples want one
    dead: Bool[Tensor, "B"]  # whose gradient is 0; none, if no gradient was wanted


def scored(
    model: BaseModel,
    score: Score,
    x0: Float[Tensor, "B *L"],
    prompts: Sequence[str],
    rng: Streams,
    method: str,
    places: Sequence[str] | None = None,
    scenes: int = 0,
    max_norm: float | None = None,
) -> Scored:
    """The rewards of clean latents, checked, and their gradients, which are taken at once.

    So decoder, renderer and reward are held for `scenes` samples at a time, and for none of them afterwards.

    Args:
        model: Decodes.
        score: Scene to reward.
        x0: Samples, or estimates of them.
        prompts: B texts.
        rng: One stream per prompt; chooses cameras.
        method: Who asks; begins the message of an error.
        places: Where each sample stands, for errors, as in "at time 0.5"; None is "on a sample" for all.
        scenes: Decoded and judged at a time, at most, or as few more as make whole groups; 0: all.
        max_norm: Largest L2 norm of the gradient of an object's reward by its x0; None: no limit.

    Raises:
        ValueError: If the score has the wrong shape, or is detached from x0 where x0 wants a gradient.
        NonFiniteError: If a reward is not finite, or its gradient; names the prompt.

    Gradient: to x0, if it wants one; that of each reward to its own sample. What a score takes from other samples of a
    group must be a constant to it.
    """
    import torch

    from align3d.diffusion.sampler import require_finite
    from align3d.gradients import clipped, dead, in_parts, with_slopes

    x0 = x0.to(torch.promote_types(x0.dtype, torch.float32))
    places = ["on a sample"] * len(prompts) if places is None else places

    def judge(part: Tensor, rows: slice) -> Tensor:
        texts = list(prompts[rows])
        reward = score(model.decode(part), texts, rng.rows(rows))
        if reward.shape != (len(part),):
            raise ValueError(f"{method}: the score must be of shape ({len(part)},), got {tuple(reward.shape)}")
        require_finite(reward.detach(), texts, "reward", places[rows])
        return reward

    reward, slopes = in_parts(judge, x0, part_size(scenes, score, rng.group))
    reward = reward.to(torch.promote_types(reward.dtype, torch.float32))
    if not (torch.is_grad_enabled() and x0.requires_grad):
        return Scored(reward, torch.zeros_like(reward, dtype=torch.bool))
    if slopes is None:
        raise ValueError(
            f"{method}: the reward has no gradient: what it gives for {prompts[0]!r} is detached from the views; use a "
            f"differentiable one"
        )
    require_finite(slopes, prompts, "reward gradient", [f"{place}; {NO_SLOPE}" for place in places])
    if max_norm is not None:
        slopes = clipped(slopes, max_norm)
    return Scored(with_slopes(x0, reward, slopes), dead(slopes))


def part_size(scenes: int, score: Score, group: int) -> int:
    """How many scenes to judge at a time: `scenes`, in whole groups where the score compares the samples of one."""
    return -(-scenes // group) * group if getattr(score, "whole_groups", False) else scenes


def prompts_of(rows: Bool[Tensor, "B"], prompts: Sequence[str]) -> list[str]:
    """The prompts of the rows that are marked."""
    return [prompt for prompt, marked in zip(prompts, rows.tolist(), strict=True) if marked]


def drift_from_reference(
    model: BaseModel,
    x: Float[Tensor, "B *L"],
    t: Float[Tensor, "*T"],
    prompts: Sequence[str],
    eps: Float[Tensor, "B *L"],
) -> Float[Tensor, ""]:
    """How far the tuned model has gone: the mean of |eps - eps_ref| / |eps_ref|, for one prediction without gradient.

    Args:
        model: Gives the reference.
        x: States.
        t: Their times, or the one that they share.
        prompts: B texts.
        eps: What the tuned model predicts there.
    """
    eps = eps.detach()
    with model.reference():
        ref = model.predict(x.detach(), t.expand(len(x)), model.encode(prompts)).to(eps.dtype)
    return ((eps - ref).flatten(1).norm(dim=1) / ref.flatten(1).norm(dim=1)).mean()
