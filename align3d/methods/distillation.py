"""What all score distillation has in common: look, noise, ask the prior, weigh the candidates, pull the scene.

    z = latents of the scene's views;  t ~ U(t_min, t_max);  x^i = alpha_t z + sigma_t eps^i,  i = 1 .. N
    r_i = reward of what the prior makes of x^i;  c = weighting(r);  g_i = the method's gradient at x^i
    loss = 1/2 |z - sg(z - sum_i c_i g_i)|^2,  whose gradient by z is sum_i c_i g_i

A method is one file that says g. With N = 1 the reward is never asked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from align3d.methods.candidates import Explore, Noised
from align3d.methods.weighting import Weighting
from align3d.types import Score, StepLoss, Subject

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.rng import Streams


@dataclass(frozen=True)
class Distillation:
    """Options of every distillation."""

    needs_gradient: ClassVar[bool] = False  # of the reward, which only chooses
    optimises: ClassVar[str] = "scene"  # and not a model

    guidance: float = 100.0  # of the prior in the loss
    negative: str = ""  # text that guidance leads away from
    t_min: tuple[float, float] = (0.02, 0.02)  # least noise, 0 to 1: at the start, and from update `anneal` on
    t_max: tuple[float, float] = (0.98, 0.98)  # most noise
    anneal: int = 0  # updates in which the limits go from their first to their second value, evenly; 0 = at once
    same_t: bool = False  # whether all rows of an update have the same noise level
    weighting: Weighting = field(default_factory=Weighting)  # of the candidates
    explore: Explore = field(default_factory=Explore)  # how candidates are judged

    def __post_init__(self) -> None:
        for low, high in zip(self.t_min, self.t_max, strict=True):
            if not 0 <= low <= high <= 1:
                raise ValueError(f"0 <= t_min <= t_max <= 1 must hold, got {self.t_min} and {self.t_max}")
        if self.anneal < 0 or not 0 <= self.guidance <= 1e4:
            raise ValueError(f"anneal must be 0 or more, guidance 0 to 1e4, got {self.anneal} and {self.guidance}")
        self.weighting.check(self.explore.candidates)

    def texts(self, prompts: Sequence[str], update: int) -> tuple[list[str], list[str]]:
        """What each row is led to, and what it is led away from."""
        return list(prompts), [self.negative] * len(prompts)

    def gradient(self, subject: Subject, rows: Noised) -> Float[Tensor, "R V *L"]:
        """The method's gradient by the clean latents, for each row."""
        raise NotImplementedError

    def extra(
        self, subject: Subject, z: Float[Tensor, "B V *L"], prompts: Sequence[str], rng: Streams
    ) -> dict[str, Tensor]:
        """Further losses, by name: scalars with a gradient to something else than the scene."""
        return {}

    def losses(
        self, subject: Subject, score: Score, times: Float[Tensor, "T"], prompts: Sequence[str], rng: Streams
    ) -> Iterator[StepLoss]:
        """One update of the scene.

        Args:
            subject: The scene and its prior.
            score: Pictures to reward; asked if there are several candidates, no gradient needed.
            times: Of a sampler; not used.
            prompts: B texts, one per row of views.
            rng: One stream per row.

        Yields:
            One loss, the mean over rows of half the squared gradient; its gradient by the latents of a row is that of
            the row's candidates, weighed, by B.

        Raises:
            NonFiniteError: If a prediction, a reward or a gradient is not finite; names the prompt.
        """
        import torch

        from align3d.diffusion.sampler import require_finite

        look = subject.look(rng)
        B, z = len(prompts), look.latents.detach()
        with torch.no_grad():
            t = self.levels(rng, like=z)
            texts = self.texts(prompts, rng.step)
            noised = self.explore.noised(subject, look, t, texts, prompts, rng)
            num = len(noised.x) // B
            reward = self.explore.rewards(subject, score, noised, texts, rng) if num > 1 else None
            c = self.weighting(torch.zeros(1, B).to(z) if reward is None else reward).to(z)
            used = c.flatten().nonzero()[:, 0]
            g = torch.zeros_like(noised.x)
            g[used] = self.gradient(subject, noised.rows(used))
            require_finite(g, noised.prompts, "gradient", [f"at time {value:.3f}" for value in noised.t.tolist()])
            step = (c.reshape(-1, *[1] * (g.ndim - 1)) * g).unflatten(0, (num, B)).sum(0)
        pulled = (0.5 * (look.latents - (z - step)).square()).flatten(1).sum(1)  # gradient by latents: step
        extra = self.extra(subject, z, prompts, rng)
        terms = {**look.penalties, **extra}
        loss = pulled.mean() + sum(terms.values(), torch.zeros_like(pulled[0]))
        metrics = {"t": t.mean(), "pull": step.flatten(1).norm(dim=1).mean()} | self.chosen(reward, c)
        yield StepLoss(loss, metrics | {name: value.detach() for name, value in terms.items()})

    def levels(self, rng: Streams, like: Tensor) -> Float[Tensor, "B"]:
        """The noise level of each row, in [0, 1]."""
        done = min(1.0, rng.step / self.anneal) if self.anneal else 1.0
        low, high = (first + done * (last - first) for first, last in (self.t_min, self.t_max))
        u = rng.uniform("t", like=like)
        if self.same_t:
            import torch

            u = torch.rand((), generator=rng.common("t")).to(like).expand(len(rng))
        return low + (high - low) * u

    def chosen(self, reward: Float[Tensor, "N B"] | None, c: Float[Tensor, "N B"]) -> dict[str, Tensor]:
        """What to log of the candidates: their mean reward, its spread, and that of those that count for the scene."""
        if reward is None:
            return {}
        gain = c.clamp_min(0)
        weighed = (gain * reward).sum(0) / gain.sum(0)
        return {
            "reward": reward.mean(),
            "reward_std": reward.std(0, correction=0).mean(),
            "reward_chosen": weighed.mean(),
            "reward_best": reward.amax(0).mean(),
        }
