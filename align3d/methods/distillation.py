"""What all score distillation has in common: look, noise, ask the prior, weigh the candidates, pull the scene.

    z = latents of the scene's views;  t ~ U(t_min, t_max);  x^i = alpha_t z + sigma_t eps^i,  i = 1 .. N
    r_i = reward of what the prior makes of x^i;  c = weighting(r);  g_i = the method's gradient at x^i
    loss = 1/2 |z - sg(z - sum_i c_i g_i)|^2,  whose gradient by z is sum_i c_i g_i

A method is one file that says g. With N = 1 the reward is never asked. Source of the weighing: RewardSDS, arXiv
2503.09601, algorithm 1; reference.py has what its code does otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from align3d.methods import reference
from align3d.methods.candidates import Explore, Noised
from align3d.methods.weighting import Weighting
from align3d.types import Look, Score, StepLoss, Subject

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from align3d.rng import Streams


@dataclass(frozen=True)
class Distillation:
    """Options of every distillation."""

    needs_gradient: ClassVar[bool] = False  # of the reward, which only chooses
    optimises: ClassVar[str] = "scene"  # and not a model
    levels_2d: ClassVar[int] = 500  # noise levels that the published 2D code draws from; 0: all

    guidance: float = 100.0  # of the prior in the loss
    negative: str = ""  # text that guidance leads away from
    t_min: tuple[float, float] = (0.02, 0.02)  # least noise, 0 to 1: at the start, and from update `anneal` on
    t_max: tuple[float, float] = (0.98, 0.98)  # most noise
    anneal: int = 0  # updates in which the limits go from their first to their second value, evenly; 0 = at once
    same_t: bool = False  # whether all rows of an update have the same noise level
    weight: Literal["variance", "uniform", "fantasia3d"] = "variance"  # w(t): sigma^2; 1; or alpha sigma^2
    weighting: Weighting = field(default_factory=Weighting)  # of the candidates
    explore: Explore = field(default_factory=Explore)  # how candidates are judged
    compat: Literal["none", "reference"] = "none"  # reference = as the published code of RewardSDS, quirks included

    def __post_init__(self) -> None:
        for low, high in zip(self.t_min, self.t_max, strict=True):
            if not 0 <= low <= high <= 1:
                raise ValueError(f"0 <= t_min <= t_max <= 1 must hold, got {self.t_min} and {self.t_max}")
        if self.anneal < 0 or not 0 <= self.guidance <= 1e4:
            raise ValueError(f"anneal must be 0 or more, guidance 0 to 1e4, got {self.anneal} and {self.guidance}")
        if self.weight not in ("variance", "uniform", "fantasia3d"):
            raise ValueError(f"weight must be variance, uniform or fantasia3d, got {self.weight!r}")
        if self.compat not in ("none", "reference"):
            raise ValueError(f"compat must be none or reference, got {self.compat!r}")
        if self.compat == "reference" and self.explore.halving:
            raise ValueError("the published code does not halve candidates; use compat none, or no explore.halving")
        self.weighting.check(self.explore.candidates)

    def check(self, subject: Subject, times: Float[Tensor, "T"], group: int) -> None:
        """Refuse a subject that the method cannot work with.

        Raises:
            ValueError: Says why.
        """
        if self.compat == "reference":
            reference.check(subject.schedule, self.explore)

    def groups(self) -> dict[str, dict[str, Any]]:
        """Options of the optimiser for what the method trains beside the scene."""
        return {}

    def texts(self, prompts: Sequence[str], update: int) -> tuple[list[str], list[str]]:
        """What each row is led to, and what it is led away from."""
        return list(prompts), [self.negative] * len(prompts)

    def gradient(self, subject: Subject, rows: Noised) -> Float[Tensor, "R V *L"]:
        """The method's gradient by the clean latents, for each row."""
        raise NotImplementedError

    def original(self, subject: Subject, look: Look, rng: Streams) -> Float[Tensor, "B V *L"] | None:
        """Clean latents that `gradient` wants beside those of the look, as `rows.original`."""
        return None

    def extra(self, subject: Subject, look: Look, prompts: Sequence[str], rng: Streams) -> dict[str, Float[Tensor, ""]]:
        """Further losses, by name: scalars with a gradient to something else than the scene."""
        return {}

    def w(self, subject: Subject, rows: Noised) -> Float[Tensor, "R *ones"]:
        """The weight of each row's noise level."""
        import torch

        from align3d.diffusion.schedule import bcast

        alpha, variance = subject.schedule.alpha(rows.t), subject.schedule.sigma(rows.t) ** 2
        found = {"variance": variance, "uniform": torch.ones_like(variance), "fantasia3d": alpha * variance}
        return bcast(found[self.weight], rows.x)

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

        look = subject.look(rng)
        with torch.no_grad():
            step, metrics, lists = self.step(subject, look, score, prompts, rng)
        pulled = 0.5 * (look.latents - (look.latents.detach() - step)).square()  # gradient by latents: step
        pull = pulled.flatten(1).sum(1).mean() / (pulled.shape[1] if self.compat == "reference" else 1)
        terms = {**look.penalties, **self.extra(subject, look, prompts, rng)}
        loss = pull + sum(terms.values(), torch.zeros_like(pull))
        yield StepLoss(loss, metrics | {name: value.detach() for name, value in terms.items()}, lists=lists)

    def step(
        self, subject: Subject, look: Look, score: Score, prompts: Sequence[str], rng: Streams
    ) -> tuple[Float[Tensor, "B V *L"], dict[str, Tensor], dict[str, list[Any]]]:
        """The gradient by the latents of each row, from all its candidates; what to log of all, and of each."""
        import torch

        from align3d.diffusion.sampler import require_finite

        B, z = len(prompts), look.latents
        explore, weighting = self.explore, self.weighting
        if self.compat == "reference":
            explore, weighting = reference.quirks(explore, weighting, self.guidance, views=z.shape[1])
        t = self.levels(rng, like=z)
        noised = explore.noised(subject, look, t, self.texts(prompts, rng.step), prompts, rng)
        noised, num = noised.beside(self.original(subject, look, rng)), len(noised.x) // B
        c, metrics, lists = torch.ones(1, B).to(z), {}, {}
        if num > 1:
            numbers, reward = explore.rewards(subject, score, noised, weighting, rng)
            counts = weighting(reward)
            c = torch.zeros(num, B).to(z).scatter(0, numbers, counts.to(z))
            metrics, lists = chosen(reward, counts), each(numbers, reward, c)
        used = c.flatten().nonzero()[:, 0]
        g = torch.zeros_like(noised.x)
        g[used] = self.gradient(subject, noised.rows(used))
        require_finite(g, noised.prompts, "gradient", [f"at time {value:.3f}" for value in noised.t.tolist()])
        step = (c.reshape(-1, *[1] * (g.ndim - 1)) * g).unflatten(0, (num, B)).sum(0)
        return step, {"t": t.mean(), "pull": step.flatten(1).norm(dim=1).mean()} | metrics, lists

    def levels(self, rng: Streams, like: Float[Tensor, "B V *L"]) -> Float[Tensor, "B"]:
        """The noise level of each row, in [0, 1]."""
        done = min(1.0, rng.step / self.anneal) if self.anneal else 1.0
        low, high = (first + (last - first) * done for first, last in (self.t_min, self.t_max))
        if self.compat == "reference":
            levels = self.levels_2d if like.shape[1] == 1 else 0
            return reference.level(low, high, levels, rng, "t").to(like).expand(len(rng))
        u = rng.uniform("t", like=like)
        if self.same_t:
            import torch

            u = torch.rand((), generator=rng.common("t")).to(like).expand(len(rng))
        return low + (high - low) * u


def chosen(reward: Float[Tensor, "N B"], c: Float[Tensor, "N B"]) -> dict[str, Tensor]:
    """What to log of the candidates: their mean reward, its spread, and that of those that count for the scene."""
    gain = c.clamp_min(0)
    weighed = (gain * reward).sum(0) / gain.sum(0).clamp_min(1e-12)  # with lambda_max 0, none counts for it
    return {
        "reward": reward.mean(),
        "reward_std": reward.std(0, correction=0).mean(),
        "reward_chosen": weighed.mean(),
        "reward_best": reward.amax(0).mean(),
    }


def each(
    numbers: Int[Tensor, "K B"], reward: Float[Tensor, "K B"], c: Float[Tensor, "N B"]
) -> dict[str, list[list[float | None]]]:
    """What to log of each candidate of each scene, in the order drawn: its reward, null if it dropped out; its c."""
    rewards: list[list[float | None]] = [[None] * len(c) for _ in range(c.shape[1])]
    for row, own, found in zip(rewards, numbers.T.tolist(), reward.T.tolist(), strict=True):
        for number, value in zip(own, found, strict=True):
            row[number] = value
    return {"candidate_rewards": rewards, "candidate_weights": c.T.tolist()}
