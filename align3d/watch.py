"""Watching a run for reward hacking: fixed held-out samples, scored by rewards that it is not trained on.

At every look, the same prompts and seeds are sampled and scored by the watched rewards and the trained one. Their FID
is taken against samples that the base model made of other seeds before the first update; what the base model itself
has against those is the floor. A look takes nothing from the training's randomness, so it changes no update.

    RUN/watch/base, reference     samples of the base model, measured: the watched seeds, and the others
    RUN/watch/base.json           their numbers, for the report
    RUN/metrics.jsonl             a look's numbers in the row of its update: watch_NAME, and watch_NAME_error
    RUN/best/                     the adapter of the best look, laid out as adapter/, and best.json: which, and why
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align3d.conditions import Base, Condition, Met, met, parse
from align3d.log import WATCHED as COLUMN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.evaluate import Change, Evaluation
    from align3d.features import FeatureNetwork
    from align3d.metrics import Reference
    from align3d.types import BaseModel, Cameras, Reward

MOST = 4096  # samples of a look; more would be an evaluation
VIEW_PIXELS, ALL_PIXELS = 1 << 22, 1 << 29  # of one sample's views, and of all; they are in memory together
FOLDER = "watch"  # in a run's folder


@dataclass(frozen=True)
class Watch:
    """What to watch while training, how often, and what to do about it."""

    rewards: tuple[str, ...] = ()  # watched beside the trained one: dnc, "loose=dnc(alpha=0.5)"
    every: int = 10  # updates between looks; 0 = only after the last
    prompts: Path = Path("heldout")  # a prompt per line; train, heldout = the embedded generator's, or the model's
    num: int = 20  # prompts, spread over those that all rewards know
    seeds: int = 2  # samples of each prompt, 2 or more
    seed: int = 0  # first of them; as many others make the base model's samples that the FID is taken against
    views: int = 8  # of each sample, all around
    size: int = 128  # side of a view in pixels
    features: str = "efficientnet"  # for FID and diversity, or "inception(folder=DIR)"; none = diversity of pixels
    stop_when: str = ""  # end training after a look with "fid > 40 or dnc < base - 3se", for example; "" = never
    go_on: bool = False  # train on after such a look; it only keeps the adapter out of best/
    best: str = ""  # reward whose highest value marks the adapter kept in best/; "" = the trained one

    def __post_init__(self) -> None:
        limits = {"every": (0, 10**9), "num": (2, MOST), "seeds": (2, MOST), "views": (1, 64), "size": (16, 1024)}
        limits["seed"] = (0, 2**62)
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"watch.{name} must be {low} to {high}, got {getattr(self, name)}")
        if self.num * self.seeds > MOST:
            raise ValueError(f"watch.num x watch.seeds must be at most {MOST}, got {self.num} x {self.seeds}")
        each = self.views * self.size**2
        if each > VIEW_PIXELS or self.num * self.seeds * each > ALL_PIXELS:
            got = f"{self.num} x {self.seeds} samples of {self.views} views of {self.size} pixels"
            raise ValueError(f"watching {got} takes too much memory; lower watch.num, watch.views or watch.size")
        conditions = parse(self.stop_when)
        if self.go_on and not conditions:
            raise ValueError("watch.go_on needs a watch.stop_when, for what to keep out of best/")

    @property
    def on(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.rewards or self.stop_when or self.best)

    def plan(
        self,
        out: Path,
        trained: str,
        reward: Reward,
        listed: Callable[[str, Sequence[str]], Mapping[str, Any]],
        read: Callable[[Path], list[str]],
        batch_size: int = 8,
    ) -> Watching:
        """All that a run needs for its looks, checked.

        Args:
            out: The run's folder.
            trained: The name of the trained reward.
            reward: The trained reward, with its options.
            listed: From a kind of part and texts, as the fields above have them, to parts by what they are called,
                each an object with the attribute `part`; see commands.listed.
            read: From a file's path to its prompts.
            batch_size: Samples at a time.

        Raises:
            ValueError: If something cannot be watched; says what, and what to do.
        """
        from align3d.evaluate import evaluation_cameras, spread
        from align3d.features import require
        from align3d.rewards.score import as_reward, known

        others = listed("reward", [text for text in self.rewards if text != trained])
        if trained in others:
            raise ValueError(f"reward {trained!r} is the one that is trained; call the watched one otherwise: NAME=...")
        rewards = {trained: reward} | {label: as_reward(one.part) for label, one in others.items()}
        best = self.best or trained
        if best not in rewards:
            why = "; the lowest FID is the untouched base model's" if best == "fid" else ""
            raise ValueError(f"watch.best must be a reward that is watched, {', '.join(rewards)}; got {best!r}{why}")
        prompts = known(list(dict.fromkeys(read(self.prompts))), rewards)
        network = None
        if self.features != "none":
            ((name, found),) = listed("features", [self.features]).items()
            require(network := found.part, name)
        return Watching(
            out=out,
            prompts=tuple(prompts[i] for i in spread(len(prompts), self.num)),
            seeds=tuple(range(self.seed, self.seed + self.seeds)),
            rewards=rewards,
            features=network,
            cameras=evaluation_cameras(self.size, [(i + 0.5) * 360 / self.views for i in range(self.views)]),
            every=self.every,
            conditions=parse(self.stop_when),
            go_on=self.go_on,
            best=best,
            batch_size=batch_size,
        )


@dataclass
class Watching:
    """Looks at a model along its training; `loop.fit` calls it, in the first process."""

    out: Path  # the run's folder
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]  # of each prompt; those that follow are the reference's
    rewards: Mapping[str, Reward]  # the trained one is the first
    features: FeatureNetwork | None
    cameras: Cameras  # (1, V)
    every: int = 10
    conditions: tuple[Condition, ...] = ()  # each keeps a look's adapter out of best/
    go_on: bool = False  # whether to train on when one holds
    best: str = ""  # a reward; the trained one if empty
    batch_size: int = 8
    _base: Evaluation | None = field(default=None, repr=False)
    _told: Base = field(default_factory=Base, repr=False)  # what base.json says of it
    _images: Reference | None = field(default=None, repr=False)  # what the FID is taken against

    def __post_init__(self) -> None:
        if len(self.prompts) < 2 or len(self.seeds) < 2:
            got = f"{len(self.prompts)} and {len(self.seeds)}"
            raise ValueError(f"watching needs two prompts or more and two seeds or more, got {got}")
        self.best = self.best or next(iter(self.rewards))
        names = [*self.rewards, "diversity", *(["fid"] if self.features is not None else [])]
        for condition in self.conditions:
            if condition.name not in names:
                raise ValueError(
                    f"stop-when has {condition.name!r}, known here: {', '.join(names)}; "
                    + ("a FID needs --watch.features" if condition.name == "fid" else "watch it with --watch NAME")
                )
            if condition.unit == "sd" and condition.name not in self.rewards:
                raise ValueError(
                    f"stop-when has {str(condition)!r}, but {condition.name} is one number of all samples and has no "
                    "sd; give se, the standard error of its change, or base + NUMBER"
                )
        if self.features is None:
            return
        try:
            self.features.check()
        except ValueError as error:
            raise ValueError(f"{error}; or watch without FID: --watch.features none") from error
        counts = (len(self.prompts), len(self.seeds), self.cameras.c2w.shape[1])
        from align3d.metrics import needed

        if math.prod(counts) < needed(self.features.dims):
            prompts, seeds, views = counts
            raise ValueError(
                f"a FID of {self.features.dims} features needs {needed(self.features.dims)} images or more in each "
                f"set, else it is mostly bias; {prompts} prompts x {seeds} seeds x {views} views are "
                f"{math.prod(counts)}: raise watch.num, watch.seeds or watch.views, or give --watch.features none"
            )

    def recorded(self) -> dict[str, Any]:
        """What config.json says of it: all that the columns depend on."""
        from align3d.config import described, name_of, of_reward
        from align3d.features import FEATURES

        matrices = self.cameras.c2w.numpy(force=True).tobytes() + self.cameras.K.numpy(force=True).tobytes()
        return {
            "rewards": {name: of_reward(reward) for name, reward in self.rewards.items()},
            "every": self.every,
            "prompts": list(self.prompts),
            "seeds": list(self.seeds),
            "size": [self.cameras.height, self.cameras.width],
            "cameras": hashlib.blake2b(matrices, digest_size=16).hexdigest(),
            "features": None if self.features is None else described(self.features, name_of(self.features, FEATURES)),
            "stop_when": " or ".join(map(str, self.conditions)),
            "go_on": self.go_on,
            "best": self.best,
            "batch_size": self.batch_size,
        }

    def due(self, done: int, last: int) -> bool:
        """Whether to look after so many updates, of `last` in all."""
        return done == last or (self.every > 0 and done > 0 and done % self.every == 0)

    def begin(self, model: BaseModel) -> None:
        """Have the base model's samples: from the run's folder, or else made now.

        Raises:
            ValueError: If those in the folder are damaged or of something else.
        """
        from align3d import sampleset
        from align3d.metrics import Reference

        if self._base is not None:
            return
        best(self.out)  # a damaged one is refused now and not at the first look
        after = self.seeds[-1] + 1
        sets = {"base": self.seeds, "reference": tuple(range(after, after + len(self.seeds)))}
        found = {}
        for name, seeds in sets.items():
            folder = self.out / FOLDER / name
            if folder.is_dir():
                found[name] = sampleset.load(folder)
                told, wanted = found[name], (self.prompts, seeds, tuple(self.rewards))
                if (told.prompts, told.seeds, told.rewards) != wanted:
                    what = "prompts, seeds or rewards than the ones to watch now"
                    raise ValueError(f"{folder} holds other {what}; give the run's own again")
            else:
                with model.reference():
                    found[name] = self.measured(model, seeds)
                sampleset.save(folder, found[name])
        self._base = found["base"]
        if self.features is not None:
            self._images = Reference(*(found[name].features.flatten(1, 2) for name in ("reference", "base")))
        spread = self._base.scores.flatten(0, 1).std(0, correction=1).tolist()
        self._told = Base(self.numbers(self._base), dict(zip(self._base.rewards, spread, strict=True)))
        self.describe()

    def measured(self, model: BaseModel, seeds: Sequence[int]) -> Evaluation:
        """Samples of the model as it is; without a feature network, with their pictures."""
        from align3d.log import counting
        from align3d.sampleset import measure

        kept = 0 if self.features is not None else len(seeds)
        arguments = (self.prompts, seeds, self.rewards, self.features, self.cameras)
        tell = counting("watching", brief=True)
        return measure(model, *arguments, batch_size=self.batch_size, pictures=kept, progress=tell)

    def describe(self) -> None:
        """Write base.json: the numbers of the base model, whose FID is the floor."""
        from align3d.files import atomic_write

        assert self._base is not None
        about = {
            "trained": next(iter(self.rewards)),
            "best": self.best,
            "prompts": list(self.prompts),
            "seeds": list(self.seeds),
            "images": math.prod((*self._base.scores.shape[:2], self.cameras.c2w.shape[1])),
            **asdict(self._told),
        }
        text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
        path = self.out / FOLDER / "base.json"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            atomic_write(path, text)

    def look(self, done: int, model: BaseModel) -> dict[str, float]:
        """Sample, measure, keep the adapter if it is the best so far.

        Args:
            done: Updates done.
            model: The model as it is.

        Returns:
            The columns of the update's row: watch_NAME for each number, watch_NAME_error for the standard errors over
            prompts of its change from the base model, and seconds_watch.
        """
        begun = time.perf_counter()
        self.begin(model)
        seen = self.measured(model, self.seeds)
        numbers = self.numbers(seen)
        row = {f"{COLUMN}{name}": value for name, value in numbers.items()}
        if self.broken(row) is None:
            self.keep(done, model, numbers)
        return row | {"seconds_watch": time.perf_counter() - begun}

    def numbers(self, seen: Evaluation) -> dict[str, float]:
        """The means of the rewards, diversity and FID; and as NAME_error, standard errors over prompts.

        The errors are those of the change from the base model, prompt by prompt; of the FID, by the jackknife.
        """
        from align3d.evaluate import change
        from align3d.intervals import jackknife_error

        assert self._base is not None
        changes: list[Change] = []
        for i, name in enumerate(seen.rewards):
            changes.append(change(name, self._base.scores[..., i].mean(1), seen.scores[..., i].mean(1)))
        changes.append(change("diversity", varied(self._base), varied(seen)))
        found = {c.name: c.tuned for c in changes}
        errors = {c.name: c.error for c in changes}
        if seen.features is not None and self._images is not None:
            found["fid"], without = self._images.distance(seen.features.flatten(1, 2))
            floor = self._images.floor[1]
            errors["fid"] = jackknife_error([a - b for a, b in zip(without, floor, strict=True)])
        return found | {f"{name}_error": error for name, error in errors.items() if error is not None}

    def stops(self, row: Mapping[str, Any]) -> Met | None:
        """The condition with which a row ends the run."""
        return None if self.go_on else self.broken(row)

    def broken(self, row: Mapping[str, Any]) -> Met | None:
        """The first condition that a row meets."""
        numbers = {name.removeprefix(COLUMN): value for name, value in row.items() if name.startswith(COLUMN)}
        return met(self.conditions, numbers, self._told)

    def keep(self, done: int, model: BaseModel, numbers: Mapping[str, float]) -> None:
        """Make the adapter the one in best/, if this look is better than the one that it is from.

        The files of a start that was killed may be from a later update than the checkpoint that the run goes on from.
        They stay: that update will come again, with the same numbers.
        """
        from align3d.files import replacing_files

        before = best(self.out)
        if before is not None and before["step"] != done and before["value"] >= numbers[self.best]:
            return
        about = {"step": done, "best": self.best, "value": numbers[self.best], "numbers": dict(numbers)}
        with replacing_files(self.out / "best") as folder:  # best.json is renamed last, being the last by name
            if hasattr(model, "save_adapter"):
                model.save_adapter(folder)
            (folder / "best.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def best(out: Path) -> dict[str, Any] | None:
    """What best.json in a run's folder says: "step", "best" (the reward), "value", "numbers"; None if there is none.

    Raises:
        ValueError: If it is damaged.
    """
    from align3d.log import read_json

    path = out / "best" / "best.json"
    if not path.is_file():
        return None
    found = read_json(path)
    step, value = found.get("step"), found.get("value")
    if type(step) is not int or type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{path}: damaged, step and value must be numbers; delete the folder to go on without")
    return found


def varied(seen: Evaluation) -> Float[Tensor, "P"]:
    """How much the seeds of each prompt differ: to the feature network if there is one, else in their pixels."""
    from align3d.metrics import diversity

    found = seen.diversity() if seen.features is None else diversity(seen.features)
    assert found is not None
    return found.double()
