"""Nabla-R2D3: align a diffusion model with the gradient of a reward, without losing the model (arXiv 2506.15684).

Residual nabla-DB of nabla-GFlowNet (arXiv 2412.07775), forward loss only: one reverse step of the tuned model theta
should differ in score from the reference's by the gradient of the reward,

    grad log p_theta(x_s | x_t) - grad log p_ref(x_s | x_t) = g,    g = beta * gamma_s * dR(decode(x0_hat(x_s))) / dx_s.

Both scores share x_t and x_s, so the left side is -k (eps_theta - eps_ref) (diffusion/transition.py, score_scale) and
the loss of a transition is mean (k (eps_theta - eps_ref) + g)^2: eps_theta is pulled to eps_ref - g / k and no further.

Schedule. Until the first optimiser step the sampler's own predictions at the chosen steps are eps_theta, so there they
are made with a graph, on detached states, and not a second time (`merge`). What runs when:

- First pass, gradient at estimates: merged. A transition is complete as soon as the next prediction is made, which its
  estimate takes as a constant: it is trained there and then, in the middle of the rollout, and its graph is gone before
  the next begins. `chunk` transitions wait for one another; 1 takes the least memory.
- First pass, gradient at the sample: merged if `chunk` is 0: all graphs wait for the end of the rollout. Otherwise the
  chosen states are predicted again, one chunk at a time.
- Later passes (`inner_epochs`): predicted again, as the adapter has moved.

Gradient at the sample (`gradient_at="x0"`), from Reward Score Matching (arXiv 2604.17415): dR / dx_0 is taken once, at
the end x_0 of the rollout, and serves all its transitions, carried back by dx0_hat / dx_s = 1 / alpha_s. One decoding
and judging per sample, no estimate that is blurred or wrong; but x_0 is one of many ends of x_s. The loss of that
paper's public code (use_z0, both sides times the std of the step) is gradient_at x0, attenuation sqrt_alpha_bar, weight
sigma: there is no weaker gradient at noisy states in it, what sigma scales is the weight of the transition.

Against the public code (and so against the published runs), as it is by default here:

- Target: x0_hat uses the noise level of x_s itself (there: one step too clean). Its eps is what the sampler predicted
  at x_s, a constant; `jacobian` differentiates the network as well, as there. The last transition scores the sample
  itself and not an estimate of it. No noise on the colours that the reward sees (there: 0.002; --noise of train).
- Transitions: 4 of 20 per rollout (there: 8), the last and one from each equal part of the others; any number of steps.
- Weight: min(k^2, 4); "paper" is theirs, under which the last transition, of k = 1760, is nearly all that trains.
- Drift: `drift` is 1 (there: 3e3 to 1e4, and over the learned variance too), and acts only in later passes over a
  rollout: training follows sampling at once. There it is one epoch behind, and the drift term holds it to old samples.
- Strength: beta is measured (`prepare`) so that `rho`, which is ours, holds; there it is set by hand, 5e5 to 5e7.
- Adapter: attention and feed-forward layers (models/lora.py); there also patch, time and caption embeddings, modulation
  and output layers.
- Differences of predictions are formed in float32 (there: bfloat16, times k), and any batch size will do (there: 1).

The same as there: attenuation by alpha_bar; clipping per object (off), before attenuation, so that a gradient at a
noisy state, which the chain rule's 1 / alpha_s has made long, is cut and then made shorter still (max_norm_at
"attenuated" limits what the loss asks for); no learned correction of the gradient and no reverse loss, which
nabla-GFlowNet has. Left out: the l1 loss, clipped drift and clipped alpha_bar, all off there.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from align3d.types import BaseModel, Score, StepLoss

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.methods.transitions import Chain, Transitions
    from align3d.rng import Streams

CALIBRATION_ROLLOUTS = 2  # of the batch that `prepare` is given: 64 reward gradients at the defaults and batch 8


@dataclass(frozen=True)
class Nabla:
    """Nabla-R2D3: regress each denoising step to the reference's, shifted by the reward's gradient."""

    needs_gradient: ClassVar[bool] = True

    beta: float | None = None  # strength of the reward, in 1 / reward; None: measured before step 0 so that rho holds
    rho: float = 0.3  # with beta None: mean size of the asked-for change of the prediction, relative to the prediction
    weight: Literal["balanced", "paper", "sigma"] = "balanced"  # min(k^2, weight_max), k^2 or (k std of the step)^2
    weight_max: float = 4.0  # largest weight if balanced; k^2 is 1 to 15 for most steps, up to 3e6 for the last ones
    transitions: int = 4  # trained per rollout, at most (2 or more): the last, one from each of n - 1 equal parts
    gradient_at: Literal["estimate", "x0"] = "estimate"  # the reward's: at every state's, or once, at the sample
    jacobian: bool = False  # whether the reward's gradient goes through the network as well: exact, one pass dearer
    attenuation: Literal["alpha_bar", "sqrt_alpha_bar", "none"] = "alpha_bar"  # factor on the gradient at noisy states
    drift: float = 1.0  # weight of the squared change of predictions since sampling; acts if inner_epochs > 1
    inner_epochs: int = 1  # passes over a rollout, each with newly drawn transitions and an optimiser step after it
    max_norm: float | None = None  # largest L2 norm of an object's reward gradient, beta included; None: no limit
    max_norm_at: Literal["scaled", "attenuated"] = "scaled"  # max_norm acts before attenuation, as published, or after
    eta: float = 1.0  # noise of the sampler, in (0, 1]: 1 is ancestral sampling, as published
    chunk: int = 1  # transitions per graph: gradients add up to the same; 0: all at once, more memory, fuller batches
    scenes: int = 4  # decoded and judged at a time, at most, to save memory: gradients stay the same; 0: all of a chunk
    merge: bool = True  # whether to train on the sampler's own predictions, where that is exact; no: predict again

    def __post_init__(self) -> None:
        for name, most in (("beta", 1e12), ("rho", 100), ("weight_max", 1e12), ("max_norm", 1e12)):
            value = getattr(self, name)
            if value is not None and not 0 < value <= most:
                raise ValueError(f"nabla: {name} must be above 0 and at most {most:g}, got {value}")
        if self.weight not in ("balanced", "paper", "sigma"):
            raise ValueError(f"nabla: weight must be balanced, paper or sigma, got {self.weight!r}")
        if self.gradient_at not in ("estimate", "x0"):
            raise ValueError(f"nabla: gradient_at must be estimate or x0, got {self.gradient_at!r}")
        if self.gradient_at == "x0" and self.jacobian:
            raise ValueError("nabla: jacobian needs gradient_at 'estimate': at the sample there is no network to pass")
        if self.attenuation not in ("alpha_bar", "sqrt_alpha_bar", "none"):
            raise ValueError(f"nabla: attenuation must be alpha_bar, sqrt_alpha_bar or none, got {self.attenuation!r}")
        if self.max_norm_at not in ("scaled", "attenuated"):
            raise ValueError(f"nabla: max_norm_at must be scaled or attenuated, got {self.max_norm_at!r}")
        if self.transitions < 2:  # the last one is always in, and alone it moves nothing (k = 1760, g / k = 0)
            raise ValueError(f"nabla: transitions must be at least 2, got {self.transitions}")
        if self.inner_epochs < 1 or self.chunk < 0 or self.scenes < 0 or not 0 <= self.drift < math.inf:
            raise ValueError(
                f"nabla: inner_epochs must be at least 1, chunk, scenes and drift at least 0 and finite, "
                f"got {self.inner_epochs}, {self.chunk}, {self.scenes} and {self.drift}"
            )
        if not 0 < self.eta <= 1:
            raise ValueError(f"nabla: eta must be above 0 and at most 1, got {self.eta}: steps must have a score")

    @property
    def merges(self) -> bool:
        """Whether the first pass over a rollout trains on the sampler's own predictions."""
        return self.merge and (self.gradient_at == "estimate" or not self.chunk)

    def losses(
        self, model: BaseModel, score: Score, times: Float[Tensor, "T"], prompts: Sequence[str], rng: Streams
    ) -> Iterator[StepLoss]:
        """Losses of one rollout, on policy: sample, choose transitions, regress.

        Args:
            model: The generator; trained through its adapter.
            score: Scene to reward, differentiable.
            times: T = K + 1 times of the sampler, descending to 0; K is at least 1.
            prompts: B texts.
            rng: One stream per prompt.

        Yields:
            One loss per chunk of transitions; their sum is the mean over transitions, samples and latents, so that
            batches may be split or joined. The last of each pass carries the metrics and asks for the update.

        Raises:
            ValueError: If beta is not set, or the score has no gradient or the wrong shape.
            NonFiniteError: If a prediction, reward or gradient is not finite; names the prompt.
        """
        from align3d.diffusion.schedule import at_least, bcast
        from align3d.diffusion.transition import score_scale
        from align3d.gradients import dead
        from align3d.methods.scoring import prompts_of
        from align3d.methods.transitions import Chain

        if self.beta is None:
            raise ValueError("nabla: beta is not set; give a number, or take the method that prepare(...) returns")
        self.check(model, times)
        chain, at_sample = Chain(model, prompts, times, rng, self.eta), None
        for epoch in range(self.inner_epochs):
            chosen = self.choose(len(chain), rng, f"transitions{epoch}")
            kept = chosen if epoch == 0 and self.merges else ()
            if self.gradient_at == "x0" and at_sample is None:
                at_sample = self.gradient_at_sample(model, score, chain, kept)

            rows: list[dict[str, Tensor]] = []
            for batch in chain.transitions(chosen, self.chunk, epoch * len(chosen), kept):
                if at_sample is None:
                    grad, reward = self.reward_gradient(model, score, batch)
                else:
                    grad, reward = carried_back(model, batch, *at_sample)
                g = self.residual(model, batch, grad)
                with model.reference():
                    eps_ref = at_least(model.predict(batch.x, batch.t, model.encode(batch.prompts)), g.dtype)
                eps = batch.eps if kept else model.predict(batch.x, batch.t, model.encode(batch.prompts))
                eps = at_least(eps, g.dtype)

                k = bcast(score_scale(model.schedule, batch.t, batch.s, self.eta), eps)
                w = self.transition_weight(model, batch, k)
                forward = (w * (eps - eps_ref + g / k) ** 2).flatten(1).mean(1)  # (k (eps - eps_ref) + g)^2 if w = k^2
                loss = forward
                if epoch:  # before the first update theta has not moved since sampling
                    loss = forward + self.drift * (eps - batch.eps).square().flatten(1).mean(1)

                size, blank = eps_ref.flatten(1).norm(dim=1), dead(grad)
                rows.append(
                    {
                        "forward": forward.detach(),
                        "drift": (eps.detach() - eps_ref).flatten(1).norm(dim=1) / size,
                        "pull": (g / k).flatten(1).norm(dim=1) / size,
                        "dead": blank.to(g.dtype),
                        "reward": reward,
                    }
                )
                done = sum(len(r["forward"]) for r in rows) == len(chosen) * len(prompts)
                metrics = self.metrics(rows, len(prompts)) if done else {}
                told = prompts_of(blank.view(-1, len(prompts)).any(0), prompts)  # once for all transitions
                yield StepLoss(loss.sum() / (len(chosen) * len(prompts)), metrics, update=done, dead=told)

    def check(self, model: BaseModel, times: Float[Tensor, "T"], group: int = 1) -> None:
        """Refuse a schedule whose last transition has no weight.

        Raises:
            ValueError: If there is no noise left at time 0, where only balanced weights are finite.
        """
        if self.weight != "balanced" and not float(model.schedule.sigma(times[-1:].double())) > 0:
            raise ValueError(
                f"nabla: weight {self.weight!r} needs noise left at time 0 of the schedule; use 'balanced'"
            )

    def prepare(
        self, model: BaseModel, score: Score, times: Float[Tensor, "T"], prompts: Sequence[str], rng: Streams
    ) -> Nabla:
        """The method with beta set: mean |g| / k = rho * mean |eps| on rollouts of the reference model.

        A function of its arguments and not of the adapter. Processes that train together must call it with the same
        prompts and streams. Rounded to 4 digits, so that it can be typed in again.

        Args:
            model: The generator; used with the adapter off.
            score: Scene to reward, differentiable.
            times: Times of the sampler that will be trained.
            prompts: B texts, typical of the training; 8 or more.
            rng: One stream per prompt.

        Returns:
            A copy with beta in units of 1 / reward; itself if beta is set.

        Raises:
            ValueError: If the reward has no gradient on any of the samples.
        """
        import torch

        from align3d.diffusion.transition import score_scale
        from align3d.methods.transitions import Chain

        if self.beta is not None:
            return self
        unit = replace(self, beta=1.0, max_norm=None)
        pull, size = [], []
        with model.reference():
            for i in range(CALIBRATION_ROLLOUTS):
                chain = Chain(model, prompts, times, rng.repeat(1, first=i), self.eta)
                at_sample = self.gradient_at_sample(model, score, chain) if self.gradient_at == "x0" else None
                for batch in chain.transitions(self.choose(len(chain), rng, f"calibration{i}"), self.chunk):
                    if at_sample is None:
                        grad, _ = self.reward_gradient(model, score, batch)
                    else:
                        grad, _ = carried_back(model, batch, *at_sample)
                    k = score_scale(model.schedule, batch.t, batch.s, self.eta)
                    pull.append(unit.residual(model, batch, grad).flatten(1).norm(dim=1) / k)
                    size.append(batch.eps.flatten(1).norm(dim=1))
        mean = float(torch.cat(pull).mean())
        if mean == 0:
            raise ValueError(
                f"nabla: the reward has no gradient on any of {len(torch.cat(pull))} states of the base model, so beta "
                f"cannot be measured; set beta, or use another reward or prompts"
            )
        return replace(self, beta=float(f"{self.rho * float(torch.cat(size).mean()) / mean:.4g}"))

    def choose(self, steps: int, rng: Streams, purpose: str) -> list[int]:
        """Which of the transitions 0 .. steps - 1 to train, ascending; the same for all samples and processes.

        The last one, and one from each of n - 1 equal parts of the others; all of them if there are no more than n.
        """
        import torch

        n = min(self.transitions, steps)
        edges = [round(i * (steps - 1) / max(n - 1, 1)) for i in range(n)]
        generator = rng.common(purpose)
        parts = [int(torch.randint(low, high, (), generator=generator)) for low, high in itertools.pairwise(edges)]
        return [*parts, steps - 1]

    def reward_gradient(
        self, model: BaseModel, score: Score, batch: Transitions
    ) -> tuple[Float[Tensor, "R *L"], Float[Tensor, "R"]]:
        """The gradient of R(decode(x0_hat(x_s))) by x_s, and R, of every row; both detached, float32 or better."""
        import torch

        from align3d.diffusion.sampler import require_finite
        from align3d.diffusion.schedule import at_least, x0_from_eps
        from align3d.methods.scoring import part_size, scored

        R, size = len(batch.x), part_size(self.scenes, score, batch.rng.group)
        if 0 < size < R:
            parts = (batch.rows(i, min(i + size, R)) for i in range(0, R, size))
            grads, rewards = zip(*(self.reward_gradient(model, score, part) for part in parts), strict=True)
            return torch.cat(grads), torch.cat(rewards)
        inner = len(batch.eps_next)  # rows before the end of the chain; there x_s is the sample and scored as it is
        with torch.enable_grad():
            x = batch.x_next.to(torch.promote_types(batch.x_next.dtype, torch.float32)).detach().requires_grad_()
            x0 = x
            if inner:
                eps = batch.eps_next  # what the sampler predicted at x_s, taken as a constant
                if self.jacobian:
                    eps = model.predict(x[:inner], batch.s[:inner], model.encode(batch.prompts[:inner]))
                estimate = x0_from_eps(model.schedule, x[:inner], at_least(eps, x.dtype), batch.s[:inner])
                x0 = torch.cat([estimate.to(x.dtype), x[inner:]])
            places = [f"at time {s:.3f}" for s in batch.s.tolist()]
            reward = scored(model, score, x0, batch.prompts, batch.rng, "nabla", places).reward
            (grad,) = torch.autograd.grad(reward.sum(), x)
        require_finite(grad, batch.prompts, "reward gradient", places)  # of the network, with jacobian
        return grad, reward.detach().to(grad.dtype)

    def gradient_at_sample(
        self, model: BaseModel, score: Score, chain: Chain, kept: Collection[int] = ()
    ) -> tuple[Float[Tensor, "B *L"], Float[Tensor, "B"]]:
        """The gradient of R(decode(x_0)) by x_0, and R, of the samples at the end of the chain; as reward_gradient."""
        chain.sample(len(chain), kept)
        return self.reward_gradient(model, score, chain.gather([len(chain) - 1]))

    def residual(self, model: BaseModel, batch: Transitions, grad: Float[Tensor, "R *L"]) -> Float[Tensor, "R *L"]:
        """The difference of scores that is asked for: g = beta grad R, attenuated by gamma_s, clipped per object."""
        from align3d.diffusion.schedule import bcast
        from align3d.gradients import clipped

        assert self.beta is not None
        g = self.beta * grad
        if self.max_norm is not None and self.max_norm_at == "scaled":
            g = clipped(g, self.max_norm)
        power = {"alpha_bar": 2, "sqrt_alpha_bar": 1, "none": 0}[self.attenuation]
        g = g * bcast(model.schedule.alpha(batch.s) ** power, g)
        if self.max_norm is not None and self.max_norm_at == "attenuated":
            g = clipped(g, self.max_norm)
        return g

    def transition_weight(
        self, model: BaseModel, batch: Transitions, k: Float[Tensor, "R *ones"]
    ) -> Float[Tensor, "R *ones"]:
        """The weight w of (eps_theta - eps_ref + g / k)^2."""
        from align3d.diffusion.transition import ddim

        if self.weight == "balanced":
            return (k**2).clamp_max(self.weight_max)
        if self.weight == "paper":
            return k**2
        return (k * ddim(model.schedule, batch.x, batch.x, batch.t, batch.s, self.eta).std) ** 2

    def metrics(self, rows: Sequence[dict[str, Tensor]], size: int) -> dict[str, Tensor | float]:
        """What to log, from the per-row values of one pass; `size` is the batch, whose finals are the last rows.

        reward and reward_std: of the samples; loss_forward: the regression; drift: |eps_theta - eps_ref| / |eps_ref|;
        pull: |g| / k / |eps_ref|, where drift would settle; dead: rows (samples times transitions) without gradient.
        """
        import torch

        join = {name: torch.cat([r[name] for r in rows]) for name in rows[0]}
        final = join["reward"][-size:]
        return {
            "reward": final.mean(),
            "reward_std": final.std(correction=0),
            "loss_forward": join["forward"].mean(),
            "drift": join["drift"].mean(),
            "pull": join["pull"].mean(),
            "dead": join["dead"].sum(),
            "beta": float(self.beta or 0),
        }


def carried_back(
    model: BaseModel, batch: Transitions, grad: Float[Tensor, "B *L"], reward: Float[Tensor, "B"]
) -> tuple[Float[Tensor, "R *L"], Float[Tensor, "R"]]:
    """The gradient by x_0, taken at the samples, as the gradient by the x_s of every row: dx0_hat / dx_s = 1 / alpha_s.

    So attenuation does the same to it as to the gradient at the estimate, which has that factor from the chain rule.
    """
    from align3d.diffusion.schedule import bcast

    n = len(batch.prompts) // len(reward)
    grad = grad.repeat(n, *[1] * (grad.ndim - 1))
    return grad / bcast(model.schedule.alpha(batch.s), grad), reward.repeat(n)
