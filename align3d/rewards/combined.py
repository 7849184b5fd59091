"""Several rewards as one: their weighted sum, each first brought to a common scale.

    score = sum_i  weight_i ramp_i(update) limit_i(scale_i(views_i(reward_i)))

views: mean, lowest or highest of the views, or of a random subset of them. scale: nothing; distance from the mean in
standard deviations, by what the run has seen so far; or by the samples of the same prompt. limit: no better than
`high`, no worse than `low`, without gradient beyond. ramp: the weight rises over the first updates.

Means and standard deviations are constants to the gradient, which a scale therefore divides by the latter.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from align3d.rewards.running import Running
from align3d.rewards.score import as_reward, call_reward, check_prompts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.rng import Streams
    from align3d.types import Reward, Views


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What is made of a reward's values before they are weighed."""

    views: Literal["mean", "min", "max"] = "mean"  # which number of all views is the object's
    subset: int = 0  # so many views of each object are judged, drawn anew in each update; 0 = all of them
    normalise: Literal["none", "running", "candidates"] = "none"  # z-score: along the run, or within loop.group samples
    span: float = 20.0  # updates that the running mean and standard deviation reach back
    low: float | None = None  # below, nothing is lost any more; in standard deviations, if normalised
    high: float | None = None  # above, nothing is gained any more; in standard deviations, if normalised
    warmup: int = 0  # updates during which the weight rises from 1 / warmup of its value; 0 = none

    def __post_init__(self) -> None:
        if self.views not in ("mean", "min", "max"):
            raise ValueError(f"views must be mean, min or max, got {self.views!r}")
        if self.normalise not in ("none", "running", "candidates"):
            raise ValueError(f"normalise must be none, running or candidates, got {self.normalise!r}")
        if self.subset < 0 or self.warmup < 0 or not 1 < self.span < math.inf:
            raise ValueError(
                f"subset and warmup must be 0 or more, span above 1 and finite, got {self.subset}, {self.warmup} "
                f"and {self.span}"
            )
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        if not low < high or low == math.inf or high == -math.inf:
            raise ValueError(f"low must be a number below high, got {self.low} and {self.high}")

    def memory(self) -> Running:
        """What will know the reward's mean and standard deviation."""
        return Running(self.span)

    def ramp(self, update: int) -> float:
        """The share of the weight in an update, counted from 0; all of it before the first, where things are scaled."""
        return 1.0 if update < 0 else min(1.0, (update + 1) / max(self.warmup, 1))


@dataclass(frozen=True, kw_only=True)
class Term(Scale):
    """One reward of a sum."""

    reward: Reward | type[Reward] | Callable[..., Tensor]  # kept as `as_reward` makes it
    weight: float = 1.0  # may be negative

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "reward", as_reward(self.reward))
        if hasattr(self.reward, "within") or hasattr(self.reward, "advance"):
            kind = type(self.reward).__name__
            raise ValueError(
                f"a term of a sum cannot be a {kind}, which has draws or a memory of its own; add up its terms"
            )
        if not math.isfinite(self.weight) or self.weight == 0:
            raise ValueError(f"a weight must be finite and not 0, got {self.weight}")


@dataclass(frozen=True)
class Combined:
    """A weighted sum of rewards, one number for each object.

    Args:
        terms: Name -> reward, weight and scale.

    Within an update (`within`) it draws views, compares samples of a prompt and takes the running statistics so far.
    Called by itself it is always the same function: all views, full weights, and z-scores by the samples from before
    training, so that what is watched along a run can be compared.

    Gradient: to the views, if all terms have one.
    """

    terms: Mapping[str, Term]
    running: dict[str, Running] = field(init=False, repr=False, compare=False)  # of each term
    bare: bool = field(init=False, repr=False, compare=False, default=False)  # whether it is being measured

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("a sum of rewards needs at least one")
        if any("/" in name for name in self.terms):
            raise ValueError(f"names of terms have no slash, got {', '.join(self.terms)}")
        object.__setattr__(self, "running", {name: term.memory() for name, term in self.terms.items()})

    @property
    def differentiable(self) -> bool:
        """Whether all terms are."""
        return all(term.reward.differentiable for term in self.terms.values())

    @property
    def needs(self) -> frozenset[str]:
        """What any term needs."""
        return frozenset().union(*(term.reward.needs for term in self.terms.values()))

    @property
    def whole_groups(self) -> bool:
        """Whether the samples of a prompt must be scored together."""
        return any(term.normalise == "candidates" for term in self.terms.values())

    @property
    def scales(self) -> bool:
        """Whether it has to be measured before the first update."""
        return any(term.normalise != "none" for term in self.terms.values())

    @property
    def remembers(self) -> list[str]:
        """The terms that are normalised by what the run has seen."""
        return [name for name, term in self.terms.items() if term.normalise == "running"]

    def check(self, prompts: Sequence[str]) -> None:
        """The checks of all terms."""
        for term in self.terms.values():
            check_prompts(term.reward, prompts)

    def check_batch(self, views: int | None, group: int) -> None:
        """Refuse what does not fit into an update.

        Args:
            views: Of each object, if it is known.
            group: Samples of a prompt.

        Raises:
            ValueError: If a subset is larger than all views, or there is nothing to compare.
        """
        for name, term in self.terms.items():
            if views is not None and term.subset > views:
                raise ValueError(f"reward {name}: a subset of {term.subset} views needs as many, there are {views}")
            if term.normalise == "candidates" and group < 2:
                raise ValueError(
                    f"reward {name} is normalised within the samples of a prompt, and there is one of each; set "
                    f"loop.group to 2 or more, or normalise=running"
                )

    def __call__(self, views: Views, prompts: Sequence[str]) -> Float[Tensor, "B 1"]:
        """The score outside of training."""
        return self.total({name: self.scaled(name, self.value(name, views, prompts)) for name in self.terms}, -1)

    def within(self, rng: Streams) -> Reward:
        """The same in an update: a reward for objects with one stream each."""
        return Within(self, rng)

    def of_update(self, views: Views, prompts: Sequence[str], rng: Streams) -> Float[Tensor, "B 1"]:
        """The score in training.

        Args:
            views: Of B objects.
            prompts: One per object.
            rng: One stream per object.
        """
        values = {}
        for name, term in self.terms.items():
            if self.bare and term.normalise == "none":
                continue  # it has nothing to go by, and may be asked for money
            seen = drawn(views, term.subset, rng, f"views of {name}") if term.subset else views
            values[name] = self.value(name, seen, prompts)
            self.running[name].add(values[name][rng.counted_rows(values[name].device)])
        if self.bare:  # nothing to go by yet: what is returned is not used
            return next(iter(values.values()))[:, None]
        return self.total({name: self.scaled(name, value, rng) for name, value in values.items()}, rng.step)

    def value(self, name: str, views: Views, prompts: Sequence[str]) -> Float[Tensor, "B"]:
        """What a reward says of each object."""
        term = self.terms[name]
        score = call_reward(term.reward, name, views, prompts)
        return {"mean": score.mean, "min": score.amin, "max": score.amax}[term.views](1)

    def scaled(self, name: str, value: Float[Tensor, "B"], rng: Streams | None = None) -> Float[Tensor, "B"]:
        """Values on their common scale, within their limits; `rng` has the groups, in training."""
        term, running = self.terms[name], self.running[name]
        alone = term.normalise == "candidates" and rng is not None  # needs nothing but the batch
        if term.normalise != "none" and not alone and not running.numbers:
            raise ValueError(
                f"reward {name} is normalised by what a run has seen, and there is no run; drop its normalise here"
            )
        if alone:
            value = among_candidates(value, rng.group)
        elif term.normalise != "none":
            value = running.scaled(value, first=rng is None)
        return value if term.low is term.high is None else value.clamp(term.low, term.high)

    def total(self, values: Mapping[str, Float[Tensor, "B"]], update: int) -> Float[Tensor, "B 1"]:
        """The weighted sum."""
        parts = [term.weight * term.ramp(update) * values[name] for name, term in self.terms.items()]
        return sum(parts[1:], parts[0])[:, None]

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Within, what is scored is measured for the first time and nothing else."""
        for running in self.running.values():
            running.numbers, running.sums = {}, None
        object.__setattr__(self, "bare", True)
        try:
            yield
        finally:
            object.__setattr__(self, "bare", False)

    def seen(self) -> dict[str, float]:
        """What the terms have given since the last `advance`, as sums."""
        found = {name: running.seen() for name, running in self.running.items()}
        return {f"{name}/{key}": value for name, sums in found.items() for key, value in sums.items()}

    def advance(self, seen: Mapping[str, float]) -> dict[str, float]:
        """Take over what `seen` gave, averaged over the processes; gives the mean of each term.

        Raises:
            ValueError: If a reward that is to be normalised said the same of all samples before training.
        """
        means = {}
        for name, running in self.running.items():
            keys = ("count", "sum", "squares")
            sums = {key: seen[f"{name}/{key}"] for key in keys if f"{name}/{key}" in seen}
            if sums:
                means[name] = running.numbers.get("mean", 0.0) + sums["sum"] / sums["count"]
            running.advance(sums)
            if sums and self.terms[name].normalise == "running" and running.flat:
                raise ValueError(
                    f"reward {name} cannot be normalised: it said {running.numbers['first_mean']:.4g} of every sample "
                    f"before training; drop its normalise, or the reward"
                )
        return means

    @property
    def numbers(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {f"{name}/{key}": v for name, running in self.running.items() for key, v in running.numbers.items()}

    def restore(self, numbers: Mapping[str, float]) -> None:
        """Take over what `numbers` gave."""
        for name, running in self.running.items():
            own = {key.removeprefix(f"{name}/"): v for key, v in numbers.items() if key.startswith(f"{name}/")}
            running.numbers, running.sums = own, None


@dataclass(frozen=True)
class Within:
    """A sum of rewards in an update."""

    total: Combined
    rng: Streams  # one per object

    @property
    def differentiable(self) -> bool:
        """As the sum."""
        return self.total.differentiable

    @property
    def needs(self) -> frozenset[str]:
        """As the sum."""
        return self.total.needs

    def __call__(self, views: Views, prompts: Sequence[str]) -> Float[Tensor, "B 1"]:
        """The score."""
        return self.total.of_update(views, prompts, self.rng)


def among_candidates(value: Float[Tensor, "B"], group: int) -> Float[Tensor, "B"]:
    """Each value less the mean of its group, in their standard deviations; 0 where all of a group are equal.

    Args:
        value: Rewards; so many in a row, `group`, are of one prompt.
        group: 2 or more.

    Gradient: to the value, by 1 / std; mean and std are constants.

    Raises:
        ValueError: If a group is not whole.
    """
    import torch

    if group < 2 or len(value) % group:
        raise ValueError(f"{len(value)} samples are no whole groups of {group}, within which they are to be normalised")
    exact = value.detach().double().view(-1, group)
    mean, std = exact.mean(1, keepdim=True), exact.std(1, correction=0, keepdim=True)
    std = torch.where(std <= 1e-6 * mean.abs() + 1e-30, math.inf, std)
    rows = (x.expand(-1, group).flatten().to(value.dtype) for x in (mean, std))
    mean, std = rows
    return (value - mean) / std


def drawn(views: Views, num: int, rng: Streams, purpose: str) -> Views:
    """`num` views of each object, drawn without replacement; in each object every view has the same chance.

    Raises:
        ValueError: If there are fewer.
    """
    import torch

    from align3d.types import CHANNELS

    B, V = views.cameras.c2w.shape[:2]
    if num > V:
        raise ValueError(f"a subset of {num} views needs as many, there are {V}")
    chosen = torch.stack([torch.randperm(V, generator=generator)[:num] for generator in rng.each(purpose)])

    def take(x: Tensor) -> Tensor:
        return x[torch.arange(B, device=x.device)[:, None], chosen.to(x.device)]

    cameras = replace(views.cameras, c2w=take(views.cameras.c2w), K=take(views.cameras.K))
    channels: dict[str, Any] = {name: x for name in CHANNELS if (x := getattr(views, name)) is not None}
    return replace(views, cameras=cameras, **{name: take(x) for name, x in channels.items()})
