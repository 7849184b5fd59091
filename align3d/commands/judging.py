"""What `evaluate` and `compare` share: what is measured, the folder it goes to, and the measuring itself."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from align3d.commands.inputs import MAX_SEED, check_pictures, check_range, read_prompts
from align3d.commands.listed import listed
from align3d.config import described, name_of
from align3d.evaluate import spread
from align3d.log import counting, plain, read_json
from align3d.rewards import REWARDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from align3d.commands.adapters import Models, Tuned
    from align3d.evaluate import Evaluation
    from align3d.features import FeatureNetwork
    from align3d.sampleset import Grid

ABOUT = "evaluation.json"  # in the folder: what is measured
SETS = "sets"


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """The flags that both commands have."""

    rewards: tuple[str, ...]  # to measure, best not only the trained one: dnc, "loose=dnc(alpha=0.5)"
    prompts: Path = Path("heldout")  # a prompt per line; train, heldout = the embedded generator's, or the model's
    skip_unknown: bool = False  # leave out prompts that one of the rewards cannot judge, instead of refusing them
    max_prompts: int = 0  # use at most so many of the prompts, spread over the list; 0 = all
    num: int = 4  # samples per prompt and model, with the seeds SEED, SEED + 1, ...; the paper has 32
    seed: int = 1000  # first seed, 0 to 2^63 - 1; the FID's reference samples have the seeds after the last
    views: int = 4  # cameras around each sample, 20 degrees above the horizon
    size: int = 128  # side of a view in pixels, at most 8192
    batch_size: int = 8  # samples at a time; more needs more memory
    out: Path  # folder to write to: new, empty, or an earlier start of the same command
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto = the GPU where there is one

    parts: ClassVar[dict[str, str | None]] = {"model": "embedded", "features": "efficientnet"}
    shorthands: ClassVar[dict[str, str]] = {"--weights": "--model.weights"}
    many_processes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, least in (("num", 1), ("views", 1), ("max_prompts", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        check_pictures(self.size, "views", self.views * self.batch_size)
        check_range("seed", self.seed, 0, MAX_SEED - 2 * self.num)


@dataclass(frozen=True)
class Plan:
    """What is measured of the base and of each tuned model, and where it goes."""

    grid: Grid  # prompts x seeds of the evaluation, with rewards
    reference: Grid | None  # as many other seeds of the base model, without rewards; None without features
    about: dict[str, Any]  # for evaluation.json: all that the numbers depend on besides the adapters
    out: Path

    def sets(self, tuned: Sequence[Tuned]) -> dict[str, tuple[Grid, Tuned | None]]:
        """Folder below sets/ -> what is in it; the base model's first."""
        found: dict[str, tuple[Grid, Tuned | None]] = {"base": (self.grid, None)}
        if self.reference is not None:
            found["reference"] = (self.reference, None)
        return found | {one.name: (self.grid, one) for one in tuned}


def plan(options: Measuring, names: dict[str, str], model: Any, features: Any, command: str) -> Plan:
    """All that is measured, checked before any work.

    Raises:
        FileNotFoundError: If there is no prompt file.
        ValueError: If a reward cannot judge a prompt, weights are missing, or there are too few images for an FID.
    """
    from align3d.checkpoint import told_apart
    from align3d.evaluate import check, evaluation_cameras
    from align3d.features import require
    from align3d.rewards.score import as_reward, check_prompts, known
    from align3d.sampleset import Grid

    prompts = read_prompts(options.prompts, model)
    asked = listed("reward", options.rewards)
    rewards = {label: as_reward(one.part) for label, one in asked.items()}
    if options.skip_unknown:
        prompts = known(prompts, rewards)
    if options.max_prompts:
        prompts = [prompts[i] for i in spread(len(prompts), options.max_prompts)]
    azimuths = [(i + 0.5) * 360 / options.views for i in range(options.views)]  # 4 views: evaluate.AZIMUTHS
    cameras = evaluation_cameras(options.size, azimuths)
    seeds = tuple(range(options.seed, options.seed + options.num))
    require(features, names["features"])
    check(prompts, seeds, tuple(rewards), cameras, features if features.dims else None)
    for reward in rewards.values():
        check_prompts(reward, prompts)
    features.check()
    network = features if features.dims else None
    if network is not None:
        enough(len(prompts), options.num, options.views, network, names["features"])
    grid = Grid(tuple(prompts), seeds, rewards, network, cameras, options.batch_size, pictures=1)
    others = tuple(seed + options.num for seed in seeds)
    reference = None if network is None else replace(grid, seeds=others, rewards={}, pictures=0)
    generator = told(names["model"], model)
    about = {
        "command": command,
        "model": {key: value for key, value in generator.items() if key not in ("adapter", "rank", "alpha")},
        **told_apart(prompts),
        "rewards": {label: told(asked[label].name, reward) for label, reward in rewards.items()},
        "features": told(names["features"], features),
        **{name: getattr(options, name) for name in ("num", "seed", "views", "size", "batch_size")},
    }
    return Plan(grid, reference, plain(about), options.out)


def told(name: str, part: Any) -> dict[str, Any]:
    """A part's name and options, those that its numbers depend on and that are the same in every process.

    An object's text may hold its address. `incidental`, a set of names, says which options change no number.
    """
    if hasattr(part, "terms"):
        each = {label: told(name_of(term.reward, REWARDS), term.reward) for label, term in part.terms.items()}
        terms = {label: described(term) | {"reward": each[label]} for label, term in part.terms.items()}
        return {"name": name, "terms": terms}
    kept = (type(None), bool, int, float, str, Path, tuple, list, set, frozenset, dict)
    incidental = getattr(part, "incidental", ())
    own = described(part, name).items()
    return {key: value for key, value in own if isinstance(value, kept) and key not in incidental}


def enough(prompts: int, seeds: int, views: int, network: FeatureNetwork, name: str) -> None:
    """Refuse sets that are too small.

    Raises:
        ValueError: Says how many images are needed, and why.
    """
    from align3d.metrics import needed

    have, need = prompts * seeds * views, needed(network.dims)
    if have < need:
        raise ValueError(
            f"an FID needs {need} images or more in each set, a quarter of the {network.dims} features of {name}, got "
            f"{have} = {prompts} prompts x {seeds} seeds x {views} views. It is biased upwards, the more the fewer the "
            f"images: below that, two sets of one and the same model are about as far apart as those of two models. "
            f"Use --num {-(-need // (prompts * views))} or more prompts, or --features none for rewards alone"
        )
    if seeds < 2:
        raise ValueError(
            "diversity is measured between the seeds of a prompt, got --num 1; use 2 or more, or --features none"
        )


def examine(out: Path, about: dict[str, Any]) -> None:
    """Refuse a folder that holds something else; changes nothing.

    Raises:
        FileExistsError: If it holds no evaluation.
        ValueError: If it holds another one, whose fields are named.
    """
    from align3d.checkpoint import entries, flat, listed

    if not (out / ABOUT).exists():
        if entries(out):
            raise FileExistsError(f"{out} is not empty and holds no evaluation; choose another --out")
        return
    had, wanted = flat(read_json(out / ABOUT)), flat(about)
    differ = [
        f"{key} was {had.get(key, 'absent')!r}, now {wanted.get(key, 'absent')!r}"
        for key in sorted(had.keys() | wanted.keys())
        if had.get(key) != wanted.get(key)
    ]
    if differ:
        raise ValueError(f"{out} holds another evaluation: {listed(differ)}; give the same, or choose another --out")


def gather(work: Plan, tuned: Sequence[Tuned], models: Models) -> dict[str, Evaluation] | None:
    """Measure what is not in the folder yet, with all processes.

    Args:
        work: What to measure.
        tuned: The tuned models.
        models: Where they come from; not loaded if everything is there.

    Returns:
        Set -> what was measured; None in all processes but the first.

    Raises:
        ValueError: If the folder, an adapter or a reward cannot be used; before any sampling, if that can be known.
    """
    from align3d import distributed
    from align3d.checkpoint import writable
    from align3d.evaluate import check_channels
    from align3d.files import atomic_write, locked
    from align3d.sampleset import begin

    sets = work.sets(tuned)
    with contextlib.ExitStack() as stack:

        def claim() -> None:
            examine(work.out, work.about)
            with writable(work.out):
                work.out.mkdir(parents=True, exist_ok=True)
                try:
                    stack.enter_context(locked(work.out))
                except BlockingIOError:
                    raise ValueError(f"another process is evaluating in {work.out}; wait for it to end") from None
            if not (work.out / ABOUT).exists():
                atomic_write(work.out / ABOUT, json.dumps(work.about, ensure_ascii=False, indent=1) + "\n")
            for name, (grid, one) in sets.items():
                about = {"seeds": list(grid.seeds), "adapter": None if one is None else one.digest()}
                begin(work.out / SETS / name, about)

        distributed.on_first(lambda: examine(work.out, work.about))
        missing = [name for name, (grid, _) in sets.items() if grid.missing(work.out / SETS / name)]
        for name in missing:  # before anything is written: damaged adapters, rewards that the scenes cannot serve
            with source(models, sets[name][1]) as model:
                if name == missing[0]:
                    if hasattr(model, "check"):
                        model.check(work.grid.prompts)
                    check_channels(model, work.grid.rewards, work.grid.cameras)
        distributed.anyone(False)  # until all have seen what is missing
        there = work.out.exists()
        distributed.on_first(claim)
        stack.enter_context(tidy(work.out, made=not there))
        rank, world = distributed.rank(), distributed.world()
        for k, name in enumerate(missing):
            grid, one = sets[name]
            with source(models, one) as model:
                # the first process of one set is the second of the next, so that none has all the odd blocks
                tell = None if rank else counting(f"{name} ({k + 1} of {len(missing)})")
                grid.fill(work.out / SETS / name, model, (rank + k) % world, world, tell)
        distributed.anyone(False)  # until all have written theirs
        if rank:
            return None
        return {name: grid.read(work.out / SETS / name) for name, (grid, _) in sets.items()}


@contextlib.contextmanager
def tidy(out: Path, made: bool) -> Iterator[None]:
    """Within, a failure before the first samples are measured leaves nothing, so that other arguments may follow."""
    from align3d import distributed
    from align3d.files import LOCK

    try:
        yield
    except BaseException:
        # with several processes, another may be writing its block
        if distributed.world() == 1 and not any((out / SETS).glob("*/block-*")):
            shutil.rmtree(out / SETS, ignore_errors=True)
            (out / ABOUT).unlink(missing_ok=True)
            if made and {path.name for path in out.iterdir()} <= {LOCK}:
                shutil.rmtree(out, ignore_errors=True)
        raise


@contextlib.contextmanager
def source(models: Models, one: Tuned | None) -> Iterator[Any]:
    """The base model, or a tuned one."""
    with models.base() if one is None else models.tuned(one) as model:
        yield model
