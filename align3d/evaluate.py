"""Is the tuned model better? The same prompts and seeds for both, compared pair by pair.

Samples of one prompt are alike, so prompts are what is counted: standard errors and intervals come from the means over
each prompt's seeds, which is right whatever the correlation between the seeds.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from jaxtyping import Float, UInt8
    from torch import Tensor

    from align3d.features import FeatureNetwork
    from align3d.intervals import Kind
    from align3d.types import BaseModel, Cameras, Reward, Views

AZIMUTHS = (45.0, 135.0, 225.0, 315.0)  # degrees; between the training views, where nothing was optimised
ELEVATION = 20.0  # degrees


@dataclass(frozen=True)
class Evaluation:
    """What a model's samples are worth: P prompts, S seeds, R rewards."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    rewards: tuple[str, ...]
    scores: Float[Tensor, "P S R"]  # mean over the views; higher is better
    pictures: UInt8[Tensor, "P K V 3 H W"] | None = None  # what the cameras saw of the first K seeds, on white
    features: Float[Tensor, "P S V d"] | None = None  # of each view, by a network; float32

    def mean(self) -> dict[str, float]:
        """The mean of each reward."""
        return dict(zip(self.rewards, self.scores.mean((0, 1)).tolist(), strict=True))

    def diversity(self) -> Float[Tensor, "P"] | None:
        """How much the seeds of each prompt differ: mean over pairs of seeds of the RMS distance of their pixels.

        In [0, 1]; the white background counts. None without pictures, or with those of one seed only.
        `metrics.diversity` is what a network sees of it.
        """
        if self.pictures is None or self.pictures.shape[1] < 2:
            return None
        import torch

        seeds = combinations(self.pictures.unbind(1), 2)
        pairs = [_distance(a, b) for a, b in seeds]
        return torch.stack(pairs).mean(0)

    def as_dict(self) -> dict[str, Any]:
        """Everything but pictures and features, for JSON."""
        names = {"prompts": list(self.prompts), "seeds": list(self.seeds), "rewards": list(self.rewards)}
        return names | {"scores": self.scores.tolist()}


@dataclass(frozen=True)
class Change:
    """How one number changed, over prompts."""

    name: str
    base: float  # mean before
    tuned: float  # mean after
    change: float  # mean of the differences
    error: float | None  # standard error of `change`; None with one prompt
    z: float | None  # change / error; None with fewer than ten prompts
    low: float | None  # 95 % interval of `change`
    high: float | None
    wins: float | None  # share of samples that went up, ties half; None where samples have no number of their own

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Comparison:
    """A tuned model against its base."""

    prompts: int
    seeds: int
    changes: tuple[Change, ...]  # of the rewards
    diversity: Change | None  # of Evaluation.diversity
    moved: float | None  # mean over samples of the RMS distance of the pixels to the base's, in [0, 1]

    def __getitem__(self, name: str) -> Change:
        """The change of a reward.

        Raises:
            ValueError: If it was not evaluated.
        """
        for change in self.changes:
            if change.name == name:
                return change
        raise ValueError(f"reward {name!r} was not evaluated, only {', '.join(c.name for c in self.changes)}")

    def as_dict(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        return asdict(self)

    def markdown(self) -> str:
        """A table with one row per reward, and one for diversity."""
        lines = ["| | base | tuned | change | 95 % interval | z | up |", "|---|--:|--:|--:|:-:|--:|--:|"]
        for row in (*self.changes, *([self.diversity] if self.diversity else [])):
            name = row.name.replace("\\", "\\\\").replace("|", "\\|")
            cells = [name, number(row.base), number(row.tuned), number(row.change, sign=True)]
            cells += [interval(row), "" if row.z is None else f"{row.z:+.1f}"]
            cells += ["" if row.wins is None else f"{100 * row.wins:.0f} %"]
            lines.append("| " + " | ".join(cells) + " |")
        note = f"{self.prompts} prompts x {self.seeds} seeds, paired; errors and intervals over prompts."
        if self.moved is not None:
            note += f" RMS distance of the pixels to the base's: {number(self.moved)}."
        return "\n".join([*lines, "", note, ""])


def evaluation_cameras(size: int = 128, azimuths: Sequence[float] = AZIMUTHS, elevation: float = ELEVATION) -> Cameras:
    """Fixed cameras (1, V) for judging; by default none of the training views.

    Args:
        size: Side of the images, pixels.
        azimuths: Degrees.
        elevation: Degrees above the horizon.
    """
    import torch

    from align3d.scenes.cameras import orbit

    azimuth = torch.tensor([list(azimuths)], dtype=torch.float32)
    return orbit(azimuth, torch.full_like(azimuth, elevation), height=size, width=size)


def evaluate(
    model: BaseModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    rewards: Mapping[str, Reward | Callable[..., Any]],
    cameras: Cameras | None = None,
    *,
    features: FeatureNetwork | None = None,
    batch_size: int = 8,
    keep: bool = True,
    progress: Callable[[float, int], None] | None = None,
) -> Evaluation:
    """Samples every prompt with every seed and scores what fixed cameras see of it, without gradients.

    A sample's noise depends on its prompt and seed alone, so the evaluations of two models pair up. For the base model,
    call it under `with model.reference():`.

    Args:
        model: The generator as it is.
        prompts: Texts; best those that were not trained on.
        seeds: Each gives one sample per prompt.
        rewards: Name -> reward, also a class of rewards or a plain function of views and prompts; may be none with
            `features`.
        cameras: (1, V), the same for all samples; None takes `evaluation_cameras()`.
        features: What gives the features, for `metrics.frechet_distance` and `metrics.diversity`; None gives none.
        batch_size: Samples at a time.
        keep: Whether to keep the pictures, for diversity and distances: 3 H W V bytes a sample.
        progress: Called with the samples done, parts of one too while a batch is under way, and their total.

    Raises:
        ValueError: If there are no prompts, seeds or rewards, one is there twice, cameras are for many scenes, a
            scene cannot render what a reward needs, or a reward or the network gives the wrong shape or something that
            is not finite; it is named.
    """
    import torch

    from align3d.generate import generate
    from align3d.rewards.score import as_reward, check_prompts, check_scene

    cameras = cameras or evaluation_cameras()
    check(prompts, seeds, rewards, cameras, features)
    rewards = {name: as_reward(reward) for name, reward in rewards.items()}
    for reward in rewards.values():
        check_prompts(reward, prompts)
    if features is not None:
        features.check()
    want = tuple(sorted({"rgb"}.union(*(reward.needs for reward in rewards.values()))))
    scores, pictures, seen, done, total = [], [], [], 0, len(prompts) * len(seeds)
    with torch.no_grad():
        for batch in generate(model, prompts, seeds, batch_size, progress):
            check_scene(batch.scene, batch.prompts)
            views = batch.scene.render(_repeat(cameras, len(batch.prompts)), want=want)
            rows = [score(name, reward, views, batch.prompts) for name, reward in rewards.items()]
            scores.append(torch.stack(rows, dim=-1) if rows else torch.zeros(len(batch.prompts), 0).double())
            if features is not None:
                seen.append(featured(features, views))
            if keep:
                views.require("rgb", by="an evaluation that keeps pictures")
                pictures.append((views.rgb.clamp(0, 1) * 255).round().to(torch.uint8).cpu())
            done += len(batch.prompts)
            if progress is not None:
                progress(float(done), total)
    grid = (len(prompts), len(seeds))
    return Evaluation(
        prompts=tuple(prompts),
        seeds=tuple(seeds),
        rewards=tuple(rewards),
        scores=torch.cat(scores).unflatten(0, grid),
        pictures=torch.cat(pictures).unflatten(0, grid) if keep else None,
        features=torch.cat(seen).unflatten(0, grid) if seen else None,
    )


def score(name: str, reward: Reward, views: Views, prompts: Sequence[str]) -> Float[Tensor, "B"]:
    """The reward of each scene, mean over its views, on the CPU in double precision.

    It is shown what it asked for and no more, as in training.

    Raises:
        ValueError: If it has the wrong shape or is not finite; names the reward and the prompt.
    """
    from align3d.rewards.score import call_reward
    from align3d.types import CHANNELS

    shown = replace(views, **{channel: None for channel in CHANNELS if channel not in reward.needs})
    value = call_reward(reward, name, shown, tuple(prompts))
    return value.detach().double().mean(1).cpu()


def featured(network: FeatureNetwork, views: Views) -> Float[Tensor, "B V d"]:
    """What a feature network sees in each view, on the CPU.

    Raises:
        ValueError: If it has the wrong shape or is not finite; names the network.
    """
    from align3d.registry import blame

    views.require("rgb", by="an evaluation with features")
    batch = views.rgb.shape[:2]
    with blame(f"features {type(network).__name__}", network):
        found = network(views.rgb.flatten(0, 1))
    wanted, shape = (batch[0] * batch[1], network.dims), tuple(getattr(found, "shape", ()))
    if shape != wanted or not bool(found.isfinite().all()):
        got = f"shape {shape}" if shape != wanted else "something that is not finite"
        raise ValueError(f"{type(network).__name__} must give finite features of shape {wanted}, got {got}")
    return found.detach().float().cpu().unflatten(0, batch)


def compare(base: Evaluation, tuned: Evaluation, seed: int = 0) -> Comparison:
    """What changed from one evaluation to another, sample by sample.

    Args:
        base: Of the model as it was.
        tuned: Of the model now; the same prompts, seeds, and at least the same rewards.
        seed: Of the bootstrap.

    Raises:
        ValueError: If the evaluations do not pair up; names what differs.
    """
    for what in ("prompts", "seeds"):
        if getattr(base, what) != getattr(tuned, what):
            raise ValueError(
                f"cannot compare evaluations with different {what}; evaluate both models with the same ones"
            )
    missing = [name for name in base.rewards if name not in tuned.rewards]
    if missing:
        raise ValueError(f"cannot compare: {', '.join(missing)} was evaluated on the base only; evaluate it on both")
    changes = []
    for i, name in enumerate(base.rewards):
        before, after = base.scores[..., i], tuned.scores[..., tuned.rewards.index(name)]
        d = after - before
        wins = float((d > 0).double().mean() + (d == 0).double().mean() / 2)
        changes.append(change(name, before.mean(1), after.mean(1), seed, wins))
    spread, moved = (base.diversity(), tuned.diversity()), None
    if base.pictures is not None and tuned.pictures is not None:
        if base.pictures.shape != tuned.pictures.shape:
            raise ValueError("cannot compare pictures of different cameras; evaluate both models with the same ones")
        moved = float(_distance(base.pictures, tuned.pictures).mean())
    diversity = None if spread[0] is None or spread[1] is None else change("diversity", spread[0], spread[1], seed)
    return Comparison(len(base.prompts), len(base.seeds), tuple(changes), diversity, moved)


def change(
    name: str,
    before: Float[Tensor, "P"],
    after: Float[Tensor, "P"],
    seed: int = 0,
    wins: float | None = None,
    kind: Kind = "percentile",
) -> Change:
    """A paired comparison over P prompts, one number each.

    The standard error is that of the mean of P differences; the interval is the bootstrap over prompts. With fewer than
    ten, of which a bootstrap sees too little, it is Student's t, and there is no z.
    """
    from align3d.intervals import INTERVAL, MANY, bootstrap, t_quantile

    d = (after - before).double()
    P = len(d)
    values = {"base": float(before.double().mean()), "tuned": float(after.double().mean()), "change": float(d.mean())}
    if P < 2:
        return Change(name, **values, error=None, z=None, low=None, high=None, wins=wins)
    error = float(d.std(correction=1)) / math.sqrt(P)
    z = (
        values["change"] / error
        if error > 0
        else math.copysign(math.inf, values["change"])
        if values["change"]
        else 0.0
    )
    if P < MANY:
        half = t_quantile(P - 1, INTERVAL) * error
        low, high = values["change"] - half, values["change"] + half
        return Change(name, **values, error=error, z=None, low=low, high=high, wins=wins)
    low, high = bootstrap(d, seed, kind)
    return Change(name, **values, error=error, z=z if math.isfinite(z) else None, low=low, high=high, wins=wins)


def number(value: float | None, sign: bool = False, like: float | None = None) -> str:
    """A number as people read it: about three significant digits, no exponent where it can be helped.

    Args:
        value: The number; None and what is not finite is "n/a".
        sign: Whether to write a plus as well.
        like: Take as many decimals as this number gets, so that the two can be compared; None takes the value's own.
    """
    if value is None or not math.isfinite(value):
        return "n/a"
    size = abs(value if like is None or not math.isfinite(like) else like)
    if 0 < size < 5e-5:
        return f"{value:+.1e}" if sign else f"{value:.1e}"
    if value == 0:
        return "0"
    digits = 0 if size >= 1000 else 2 if size >= 10 else 3 if size >= 0.1 else 4
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def interval(row: Change) -> str:
    """The interval of a change, in words, with the decimals of the change."""
    return between(row.low, row.high, sign=True, like=row.change)


def between(low: float | None, high: float | None, sign: bool = False, like: float | None = None) -> str:
    """An interval in words, its ends as `number` writes them; nothing if it is not known."""
    return "" if low is None or high is None else f"{number(low, sign, like)} to {number(high, sign, like)}"


def check(
    prompts: Sequence[str], seeds: Sequence[int], rewards: Collection[str], cameras: Cameras, features: Any = None
) -> None:
    """Refuse what cannot be evaluated, before any work.

    Raises:
        ValueError: As `evaluate` says.
    """
    for what, values in (("prompt", prompts), ("seed", seeds), ("reward", rewards)):
        if isinstance(values, str) or not (len(values) or (what == "reward" and features is not None)):
            raise ValueError(f"an evaluation needs a list of at least one {what}, got {values!r}")
        twice = [value for value, count in Counter(list(values)).items() if count > 1]
        if twice:
            raise ValueError(f"{what} {twice[0]!r} is given twice, which would count the same samples twice; drop one")
    if cameras.c2w.shape[0] != 1:
        raise ValueError(f"evaluation cameras must be (1, V), the same for all samples, got {tuple(cameras.c2w.shape)}")


def check_channels(model: BaseModel, rewards: Mapping[str, Reward], cameras: Cameras) -> None:
    """Refuse a reward that needs what the model's scenes cannot render; decodes noise, which costs next to nothing.

    Raises:
        ValueError: Names the reward and the channels.
    """
    import torch

    from align3d.diffusion.sampler import device_of
    from align3d.rng import Streams

    want = tuple(sorted({"rgb"}.union(*(reward.needs for reward in rewards.values()))))
    with torch.no_grad():
        x0 = Streams.batch(0, 0, 0, 1).normal("probe", tuple(model.latent_shape)).to(device_of(model))
        views = model.decode(x0).render(_repeat(cameras, 1), want=want)
    for name, reward in rewards.items():
        views.require(*sorted(reward.needs), by=f"reward {name}")


def spread(number: int, most: int) -> list[int]:
    """At most `most` of `number` places, evenly spread, the first and the last among them (the last alone if one)."""
    if most >= number:
        return list(range(number))
    return [round(i * (number - 1) / (most - 1)) for i in range(most)] if most > 1 else [number - 1]


def _repeat(cameras: Cameras, num: int) -> Cameras:
    """The same cameras for each of `num` scenes."""
    return replace(cameras, c2w=cameras.c2w.expand(num, -1, -1, -1), K=cameras.K.expand(num, -1, -1, -1))


def _distance(a: UInt8[Tensor, "*S V 3 H W"], b: UInt8[Tensor, "*S V 3 H W"]) -> Float[Tensor, "*S"]:
    """Root mean square of the pixels' differences, in [0, 1]; row by row, to bound the memory."""
    import torch

    rows = zip(a.flatten(0, -5), b.flatten(0, -5), strict=True) if a.ndim > 4 else [(a, b)]
    values = [((x.float() - y.float()) / 255).square().mean().sqrt() for x, y in rows]
    return torch.stack(values).reshape(a.shape[:-4])
