"""DRaFT: differentiate the reward through the last steps of sampling (Clark et al. 2024, arXiv 2309.17400).

    loss = -mean R(decode(x_0)),    x_0 = the sampler's last K steps, started from a constant x_K.

K = 1 is DRaFT-1, the baseline of Nabla-R2D3; K of all steps is DRaFT; anything between is DRaFT-K. Nothing holds the
model to what it was: the reward rises for as long as it can be made to, so watch `drift` and stop in time.

DRaFT-LV (`copies`): where K is 1, sampling is by far the dearest part and its gradient one noisy draw. So the sample is
taken back to the noise level before the last step several times, with fresh noise, and the mean gradient is used.

Against the paper:

- Noise: `eta` is that of the package's sampler, 1; DDIM there, which is eta = 0.
- DRaFT-LV: noise is added to the finished sample by q(x_t | x_s), exact also where the sample keeps some noise of its
  own; the fresh draws replace the chain's own last step. Mean instead of sum, which Adam does not see.
- Optimiser: that of the loop. There AdamW with learning rates around 4e-4 and weight decay 0.1.
- Left out: reward weights and adapters that are scaled or mixed at sampling time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from align3d.types import BaseModel, Score, StepLoss

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.diffusion.schedule import Schedule
    from align3d.rng import Streams


@dataclass(frozen=True)
class Draft:
    """DRaFT: gradient ascent on the reward through the last steps of sampling."""

    needs_gradient: ClassVar[bool] = True

    last: int = 1  # K, steps of sampling that carry gradient; as many as there are, or more: all
    copies: int = 0  # above 0: DRaFT-LV with that many fresh noises (the paper has 2) before the last step; last is 1
    recompute: bool = False  # whether to run the network of each step again in the backward pass, to save memory
    max_norm: float | None = None  # largest L2 norm of the gradient of an object's reward by its x0; None: no limit
    eta: float = 1.0  # noise of the sampler, in [0, 1]: 1 is ancestral sampling, 0 is deterministic
    scenes: int = 2  # decoded and judged at a time, at most, to save memory: gradients stay the same; 0: all
    track_drift: bool = True  # whether to report the drift from the reference; one prediction per update

    def __post_init__(self) -> None:
        if self.last < 1 or self.copies < 0:
            raise ValueError(
                f"draft: last must be at least 1 and copies at least 0, got last {self.last}, copies {self.copies}"
            )
        if self.copies and self.last > 1:
            raise ValueError(f"draft: copies need last to be 1 (DRaFT-LV is for the last step), got {self.last}")
        if self.max_norm is not None and not 0 < self.max_norm <= 1e12:
            raise ValueError(f"draft: max_norm must be above 0 and at most 1e12, got {self.max_norm}")
        if self.scenes < 0:
            raise ValueError(f"draft: scenes must be at least 0, got {self.scenes}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"draft: eta must be in 0 to 1, got {self.eta}")

    def losses(
        self, model: BaseModel, score: Score, times: Float[Tensor, "T"], prompts: Sequence[str], rng: Streams
    ) -> Iterator[StepLoss]:
        """Sample, and ascend.

        Args:
            model: The generator; trained through its adapter.
            score: Scene to reward, differentiable.
            times: T times of the sampler, descending to 0.
            prompts: B texts.
            rng: One stream per prompt.

        Yields:
            One loss; with copies, one for each, of which the last carries the metrics and asks for the update. The
            metric "dead" counts samples, times copies, whose reward has no gradient.

        Raises:
            ValueError: If the score has no gradient or the wrong shape.
            NonFiniteError: If a prediction, reward or gradient is not finite; names the prompt.
        """
        import torch

        from align3d.diffusion.sampler import advance
        from align3d.methods.scoring import drift_from_reference, prompts_of, scored

        begin = max(len(times) - 1 - self.last, 0)
        starts, rewards, dead = self.starts(model, times, prompts, rng, begin), [], []
        for x, streams in starts:
            tail = advance(model, prompts, x, times[begin:], streams, self.eta, begin, self.recompute)
            x0 = tail.x[:, -1]
            judged = scored(model, score, x0, prompts, streams, "draft", scenes=self.scenes, max_norm=self.max_norm)
            rewards.append(judged.reward.detach())
            dead.append(judged.dead)
            done, metrics = len(rewards) == len(starts), {}
            if done:
                each = torch.stack(rewards).mean(0)
                metrics = {"reward": each.mean(), "reward_std": each.std(correction=0), "dead": torch.stack(dead).sum()}
                if self.track_drift:  # at the first of the states that are trained
                    metrics["drift"] = drift_from_reference(model, x, times[begin], prompts, tail.eps[:, 0])
            loss = -judged.reward.mean() / len(starts)
            yield StepLoss(loss, metrics, update=done, dead=prompts_of(judged.dead, prompts))

    def starts(
        self, model: BaseModel, times: Float[Tensor, "T"], prompts: Sequence[str], rng: Streams, begin: int
    ) -> list[tuple[Float[Tensor, "B *L"], Streams]]:
        """The states at times[begin] to go on from, without gradient, each with the streams for what follows."""
        import torch

        from align3d.diffusion.sampler import rollout

        with torch.no_grad():
            if self.copies:
                x0 = rollout(model, prompts, times, rng, self.eta, keep=False).x[:, -1]
                copies = [rng.repeat(1, first=j) for j in range(self.copies)]
                noises = [streams.normal("renoise", tuple(model.latent_shape), like=x0) for streams in copies]
                back = [renoise(model.schedule, x0, noise, times[-1], times[-2]) for noise in noises]
                return list(zip(back, copies, strict=True))
            if begin:
                return [(rollout(model, prompts, times[: begin + 1], rng, self.eta, keep=False).x[:, -1], rng)]
            return [(rng.normal("noise", tuple(model.latent_shape), like=times), rng)]


def renoise(
    schedule: Schedule,
    x: Float[Tensor, "B *L"],
    noise: Float[Tensor, "B *L"],
    s: Float[Tensor, ""],
    t: Float[Tensor, ""],
) -> Float[Tensor, "B *L"]:
    """A draw of the forward process q(x_t | x_s), from time s to a noisier t; `noise` is standard normal."""
    from align3d.diffusion.schedule import bcast

    s, t = s.double(), t.double()
    ratio = schedule.alpha(t) / schedule.alpha(s)
    std = (schedule.sigma(t) ** 2 - (ratio * schedule.sigma(s)) ** 2).clamp_min(0).sqrt()
    return bcast(ratio, x) * x + bcast(std, x) * noise
