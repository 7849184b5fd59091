"""ReFL: the reward of what a late, still noisy state promises (ImageReward, Xu et al. 2023, arXiv 2304.05977).

    loss = -mean R(decode(x0_hat(x_k))),    k a random one of the last steps.

Sampling runs without gradient to x_k, one prediction there gives x0_hat = (x_k - sigma eps) / alpha, and the reward's
gradient goes through decoder and that one prediction. Late states only, because the estimate from an early one is a
blur that no reward was made for.

Steps k: 30 to 39 of 40 in the paper's code, 15 to 19 of 20 in Nabla-R2D3's baseline: both are [0.75, 1) of the chain.

Against the public code:

- Each sample stops at a step of its own; there one step for the batch (`shared`).
- The network is told the noise level of x_k, and x0_hat uses that level. There the network is told k itself, 30 to 39
  of 1000, and the estimate uses the level of the step before.
- Loss: -R. There 1e-3 relu(2 - R) for a reward of unit variance (`target`); the factor is left out, as Adam undoes it.
- No second loss on the data that the model was trained on, which users of a checkpoint do not have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from align3d.types import BaseModel, Score, StepLoss

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from align3d.rng import Streams


@dataclass(frozen=True)
class ReFL:
    """ReFL: gradient ascent on the reward of a one-step estimate from a random late step."""

    needs_gradient: ClassVar[bool] = True

    first: float = 0.75  # where in the chain the random step may begin, 0 to 1: 0.75 is step 15 of 20, 30 of 40
    last: float = 1.0  # where it must have ended; 1 lets the last step be drawn, equal to `first` gives one step
    shared: bool = False  # whether all samples of an update stop at the same step, as published
    target: float | None = None  # reward from which on a sample no longer trains (published: 2); None: no limit
    max_norm: float | None = None  # largest L2 norm of the gradient of an object's reward by its x0; None: no limit
    eta: float = 1.0  # noise of the sampler, in [0, 1]: 1 is ancestral sampling, 0 is deterministic
    scenes: int = 2  # decoded and judged at a time, at most, to save memory: gradients stay the same; 0: all
    track_drift: bool = True  # whether to report the drift from the reference; one prediction per update

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last <= 1:
            raise ValueError(f"refl: 0 <= first <= last <= 1 must hold, got first {self.first} and last {self.last}")
        if self.target is not None and not math.isfinite(self.target):
            raise ValueError(f"refl: target must be finite, got {self.target}")
        if self.max_norm is not None and not 0 < self.max_norm <= 1e12:
            raise ValueError(f"refl: max_norm must be above 0 and at most 1e12, got {self.max_norm}")
        if self.scenes < 0:
            raise ValueError(f"refl: scenes must be at least 0, got {self.scenes}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"refl: eta must be in 0 to 1, got {self.eta}")

    def losses(
        self, model: BaseModel, score: Score, times: Float[Tensor, "T"], prompts: Sequence[str], rng: Streams
    ) -> Iterator[StepLoss]:
        """Sample up to a late step, estimate, and ascend.

        Args:
            model: The generator; trained through its adapter.
            score: Scene to reward, differentiable.
            times: T times of the sampler, descending to 0.
            prompts: B texts.
            rng: One stream per prompt.

        Yields:
            One loss. Its metric "reward" is of the estimates, not of finished samples; "taken_at" is the step of the
            chain where they were taken; "dead" counts those whose reward has no gradient.

        Raises:
            ValueError: If the score has no gradient or the wrong shape.
            NonFiniteError: If a prediction, reward or gradient is not finite; names the prompt.
        """
        import torch

        from align3d.diffusion.sampler import require_finite, rollout
        from align3d.diffusion.schedule import at_least, x0_from_eps
        from align3d.methods.scoring import drift_from_reference, prompts_of, scored

        step = self.steps(len(times) - 1, rng).to(times.device)
        far = int(step.max())
        with torch.no_grad():  # once, as far as the furthest goes; the others' states are on the way
            x = rng.normal("noise", tuple(model.latent_shape), like=times)
            if far:
                states = rollout(model, prompts, times[: far + 1], rng, self.eta).x
                x = states[torch.arange(len(states), device=states.device), step]

        t = times[step]
        eps = at_least(model.predict(x, t, model.encode(prompts)), x.dtype)
        require_finite(eps.detach(), prompts, "prediction", [f"at step {k}" for k in step.tolist()])
        x0 = x0_from_eps(model.schedule, x, eps, t).to(x.dtype)
        judged = scored(model, score, x0, prompts, rng, "refl", scenes=self.scenes, max_norm=self.max_norm)

        loss = -judged.reward if self.target is None else (self.target - judged.reward).relu()
        now = judged.reward.detach()
        metrics = {"reward": now.mean(), "reward_std": now.std(correction=0), "taken_at": step.double().mean()}
        metrics["dead"] = judged.dead.sum()
        if self.track_drift:
            metrics["drift"] = drift_from_reference(model, x, t, prompts, eps)
        yield StepLoss(loss.mean(), metrics, dead=prompts_of(judged.dead, prompts))

    def steps(self, total: int, rng: Streams) -> Int[Tensor, "B"]:
        """The step, 0 to total - 1, that each sample stops at: as many have been made before it."""
        import torch

        low = min(math.floor(self.first * total + 1e-9), total - 1)
        high = max(math.ceil(self.last * total - 1e-9), low + 1)
        generators = [rng.common("step")] if self.shared else rng.each("step")
        drawn = torch.cat([torch.randint(low, high, (1,), generator=generator) for generator in generators])
        return drawn.expand(len(rng))
