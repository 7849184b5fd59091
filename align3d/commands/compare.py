"""`align3d compare`: runs measured along their checkpoints, and compared at equal FID."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from align3d.commands import adapters
from align3d.commands.judging import Measuring
from align3d.evaluate import spread
from align3d.log import read_metrics

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from align3d.commands.adapters import Tuned
    from align3d.commands.judging import Plan
    from align3d.evaluate import Evaluation
    from align3d.matched import Curve, Matched
    from align3d.results import Distance, Result
    from align3d.runs import Run

MAY_DIFFER = (  # in the runs of one group, besides what is no part of the training
    *("loop.seed", "loop.updates", "loop.minutes", "loop.checkpoint_every", "loop.keep", "loop.sample_every"),
    *("out", "resume", "device", "inputs.prompts", "inputs.prompts_blake2b"),
)
NO_PART = ("watch", "samples")  # beginnings of fields that change no update


def first_run(args: Sequence[str]) -> Path | None:
    """The first of the arguments that is a run's folder."""
    return next((Path(arg) for arg in args if (Path(arg) / "config.json").is_file()), None)


@dataclass(frozen=True, kw_only=True)
class Compare(Measuring):
    """Compare runs at equal FID: their checkpoints measured, reward read off where they are as far from the base.

    Train with --loop.keep 0, so that all checkpoints are there. Runs that differ in their seed alone are a group, and
    give its interval. All runs must be of one model, one reward and the same prompts. Measures as `align3d evaluate`
    does; a second start with the same arguments goes on, and more runs may be added. Under torchrun, the processes
    share the prompts.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]  # folders of runs
    group: tuple[str, ...] = ("method.name",)  # fields of config.json that name a run's group, such as method.weight
    points: int = 4  # checkpoints of each run to measure, spread over it, the last one in; 0 = all
    refine: int = 2  # further ones of each run, where it crosses the highest level of FID, as near as there are
    levels: tuple[float, ...] = ()  # FIDs to compare at; none = four, from the floor to what all groups reach

    earlier: ClassVar[Any] = staticmethod(first_run)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("points", "refine"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not all(math.isfinite(level) for level in self.levels):
            raise ValueError(f"levels must be finite, got {self.levels}")


@dataclass(frozen=True)
class Trail:
    """A run and its checkpoints that are measured."""

    folder: Path
    name: str
    newest: Tuned  # its last checkpoint
    group: str
    seed: int
    steps: tuple[int, ...]  # of all its checkpoints, ascending; less that of step 0, which is the base
    chosen: tuple[int, ...]  # of those that are measured
    seconds: dict[int, float]  # update -> of training until then
    evaluations: dict[int, float]  # of the network; NaN where the run has not counted

    @property
    def checkpoints(self) -> tuple[Tuned, ...]:
        """Those that are measured, in the order of training."""
        return tuple(self.checkpoint(step) for step in self.chosen)

    def checkpoint(self, step: int) -> Tuned:
        """That of an update; only its place differs from the last one's."""
        folder = self.newest.folder.with_name(f"step-{step:06}")
        return replace(self.newest, name=self.called(step), folder=folder, step=step)

    def with_step(self, step: int) -> Trail:
        """The same with one more checkpoint to measure."""
        return replace(self, chosen=tuple(sorted((*self.chosen, step))))

    def called(self, step: int) -> str:
        """The name of a checkpoint in tables and folders."""
        return f"{self.name}-{step:06}"


def run(options: Compare, *, names: dict[str, str], model: Any, features: Any) -> None:
    """Measure what is not there yet, then write table and page."""
    from align3d import distributed
    from align3d.commands.judging import gather, plan

    paths = list(read_runs(options))
    adapters.check_models(measured(paths), names["model"])
    check_runs(paths, options.group)
    work = plan(options, names, model, features, "compare")
    models = adapters.Models(model, names["model"], options.device)
    found = gather(work, measured(paths), models)
    for _ in range(options.refine if work.reference is not None else 0):
        further = distributed.gather(None if found is None else nearer(options, paths, found))[0]
        if not any(further):
            break
        paths = [path if not step else path.with_step(step) for path, step in zip(paths, further, strict=True)]
        found = gather(work, measured(paths), models)
    if found is not None:
        write(options, work, paths, found)


def check_levels(levels: Sequence[float], curves: Sequence[Curve]) -> None:
    """Refuse levels where there is nothing to compare.

    Raises:
        ValueError: Says between which FIDs there is.
    """
    if not levels or not all(math.isfinite(p["fid"]) for c in curves for p in c.points):
        return
    low, high = (f(p["fid"] for c in curves for p in c.points) for f in (min, max))
    wrong = [level for level in levels if not low <= level <= high]
    if wrong:
        raise ValueError(f"levels must lie between {low:.4g} and {high:.4g}, where the runs are; got {wrong[0]:g}")


def measured(paths: Sequence[Trail]) -> list[Tuned]:
    """All checkpoints that are measured."""
    return [one for path in paths for one in path.checkpoints]


def nearer(options: Compare, paths: Sequence[Trail], found: dict[str, Evaluation]) -> list[int]:
    """For each run, the checkpoint to measure next, where it crosses the highest level; 0 if there is none between."""
    from align3d.matched import crossing, default_levels
    from align3d.metrics import frechet_distance

    reference = found["reference"].features.flatten(0, 2)
    seen = {one.name: found[one.name] for one in measured(paths)} | {"base": found["base"]}
    fids = {name: {"fid": frechet_distance(one.features.flatten(0, 2), reference)} for name, one in seen.items()}
    curves = curves_of(paths, fids)
    level = max(options.levels or default_levels(curves))
    return [between(path, curve, crossing(curve, "fid", level)) for path, curve in zip(paths, curves, strict=True)]


def between(path: Trail, curve: Curve, place: tuple[int, float] | None) -> int:
    """The checkpoint nearest to a place on a run's path, of those between the two beside it; 0 if there is none."""
    if place is None:
        return 0
    (a, b), u = (point.step for point in curve.points[place[0] : place[0] + 2]), place[1]
    return min((step for step in path.steps if a < step < b), key=lambda step: abs(step - a - u * (b - a)), default=0)


def read_runs(options: Compare) -> Iterator[Trail]:
    """The runs, with the checkpoints to measure.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If one has no checkpoints after the base, or its configuration is not there or damaged.
    """
    from align3d import checkpoint

    if not options.runs:
        raise ValueError("no runs; give the folders of one run or more")
    names = unlike(options.runs)
    absent = next((folder for folder in options.runs if not (folder / "config.json").is_file()), None)
    if absent is not None:
        plain = "; NAME=RUN and RUN@UPDATE are for evaluate" if {"=", "@"} & {*str(absent)} else ""
        raise FileNotFoundError(f"no run in {absent}; give a folder that `align3d train` wrote{plain}")
    runs = [adapters.recorded(folder) for folder in options.runs]
    known = {field for run in runs for field in fields_of(run)}
    for folder, name, run in zip(options.runs, names, runs, strict=True):
        steps = [checkpoint.step_of(path) for path in checkpoint.steps(folder)]
        later = [step for step in steps if step > 0]
        if not later:
            raise ValueError(f"{folder} has no checkpoints of a trained adapter; let it run until there is one")
        if (run.settings.get("model") or {}).get("adapter") is not None:
            raise ValueError(
                f"{folder} began with an adapter, not with the base; `align3d evaluate` measures such runs"
            )
        chosen = [later[i - 1] for i in spread(len(later) + 1, (options.points or len(later)) + 1) if i]
        fields = fields_of(run)
        seed = fields.get("loop.seed")
        if not isinstance(seed, int):
            raise ValueError(f"{folder / 'config.json'} has no loop.seed; seeds tell the runs of a group apart")
        rows = read_metrics(folder / "metrics.jsonl")
        yield Trail(
            folder,
            name,
            adapters.at(folder, name, later[-1]),
            group_of(folder, fields, options.group, known),
            seed,
            tuple(later),
            tuple(chosen),
            {step: total(rows, "seconds", step) for step in later},
            {step: total(rows, "evaluations", step) for step in later},
        )


def fields_of(run: Run) -> dict[str, Any]:
    """All that its config.json says of the training, with dotted keys such as method.rho and inputs.processes."""
    from align3d.checkpoint import flat

    return flat({**run.settings, "inputs": run.config.get("inputs")})


def unlike(folders: Sequence[Path]) -> list[str]:
    """A short name for each folder, all different.

    Raises:
        ValueError: If one is there twice.
    """
    whole = [folder.resolve() for folder in folders]
    twice = next((folder for i, folder in enumerate(whole) if folder in whole[:i]), None)
    if twice is not None:
        raise ValueError(f"the run {twice} is given twice, which would count it twice; drop one")
    short = [path.name for path in whole]
    names = [
        name if short.count(name) == 1 else f"{path.parent.name}-{name}"
        for name, path in zip(short, whole, strict=True)
    ]
    good = [name not in adapters.TAKEN and bool(adapters.NAME.fullmatch(name)) for name in names]
    bad = next((n for n, fine in zip(names, good, strict=True) if names.count(n) > 1 or not fine), None)
    if bad is not None:
        raise ValueError(f"runs cannot be called {bad!r}; rename their folders, to different names of letters and .+-_")
    return names


def group_of(folder: Path, fields: dict[str, Any], wanted: Sequence[str], known: Collection[str]) -> str:
    """What a run's group is called: the values of the wanted fields, less those that only other runs have.

    Raises:
        ValueError: If no run has one of them, or this one has not the only one.
    """
    values = []
    for field in wanted:
        key = f"{field}.name" if f"{field}.name" in fields else field
        if key in fields:
            values.append(str(fields[key]))
        elif key not in known or len(wanted) == 1:  # else an option of another method
            near = [name for name in fields if name.startswith(f"{field.partition('.')[0]}.")] or list(fields)
            raise ValueError(f"{folder / 'config.json'} has no {field!r} to group by; it has {', '.join(near)}")
    return " ".join(values) or "other"


def total(rows: Sequence[dict[str, Any]], name: str, step: int) -> float:
    """The sum of a column until an update; NaN if a row has no number."""
    values = [row.get(name) for row in rows if row["step"] <= step]
    good = len(values) == step and all(isinstance(value, (int, float)) for value in values)
    return float(sum(values)) if good else math.nan


def check_runs(paths: Sequence[Trail], group: Sequence[str]) -> None:
    """Refuse runs that cannot be compared.

    Raises:
        ValueError: Names two of them and what differs: prompts, the trained reward, or more than the seed in a group.
    """
    from align3d.checkpoint import differences, listed

    first = paths[0]
    for path in paths[1:]:
        for what, key in (("prompts", "prompts_blake2b"), ("numbers of prompts", "prompts")):
            a, b = ((p.newest.run.config.get("inputs") or {}).get(key) for p in (first, path))
            if a != b:
                raise ValueError(f"{first.folder} and {path.folder} were trained on different {what}; compare others")
        a, b = (p.newest.run.settings.get("reward") for p in (first, path))
        if a != b:
            said = f"{shown(a)} and {shown(b)}"
            raise ValueError(
                f"{first.folder} and {path.folder} were trained on different rewards, {said}; compare others"
            )
    heads: dict[str, Trail] = {}
    seeds: dict[tuple[str, int], Trail] = {}
    for path in paths:
        head = heads.setdefault(path.group, path)
        old, new = (fields_of(p.newest.run) for p in (head, path))
        differ = [k for k in differences(old, new) if k not in MAY_DIFFER and not k.startswith(NO_PART)]
        if differ:
            said = listed([f"{key} {old.get(key)!r} and {new.get(key)!r}" for key in differ])
            ask = " ".join([*group, differ[0]])
            raise ValueError(
                f"{head.folder} and {path.folder} are both {path.group!r} and differ in more than the seed: {said}; "
                f"tell them apart with --group {ask}"
            )
        twin = seeds.setdefault((path.group, path.seed), path)
        if twin is not path:
            same = f"{twin.folder} and {path.folder} are both {path.group!r} with seed {path.seed}"
            raise ValueError(f"{same}, which would count one run twice; drop one")


def shown(reward: Any) -> str:
    """A recorded reward in words."""
    if not isinstance(reward, dict):
        return repr(reward)
    more = ", ".join(f"{key} {value!r}" for key, value in reward.items() if key != "name")
    return f"{reward.get('name')}" + (f" ({more})" if more else "")


def results_of(paths: Sequence[Trail], found: dict[str, Evaluation]) -> dict[str, Result]:
    """The numbers of the base and of every checkpoint."""
    from align3d.results import all_results

    tuned = {one.name: found[one.name] for one in measured(paths)}
    return {result.name: result for result in all_results(found["base"], found.get("reference"), tuned)}


def unmoved(runs: dict[str, list[Distance]]) -> str:
    """Which runs never get surely farther from the base model than its own samples are from each other, in words."""
    farthest = {name: max(distances, key=lambda d: d.value) for name, distances in runs.items() if distances}
    still = [name for name, distance in farthest.items() if not distance.sure]
    if not still:
        return ""
    which = "No run is" if len(still) == len(runs) else f"{len(still)} of {len(runs)} runs are not"
    return (
        f"{which} surely farther from the base model than its own samples are from each other ({', '.join(still)}), so "
        f"that where such a run is best says little.\n"
    )


def curves_of(paths: Sequence[Trail], numbers: dict[str, dict[str, float]]) -> list[Curve]:
    """The runs from the base model to their ends, from the numbers of the base and of every checkpoint."""
    from align3d.matched import Curve, Point

    found = []
    for path in paths:
        points = [Point(0, 0.0, 0.0, numbers["base"])]
        for step in path.chosen:
            points.append(Point(step, path.seconds[step], path.evaluations[step], numbers[path.called(step)]))
        found.append(Curve(path.group, path.seed, tuple(points)))
    return found


def tables_of(
    curves: Sequence[Curve],
    rewards: Sequence[str],
    levels: Sequence[float],
    trained: str | None,
    without: Sequence[Sequence[Curve]] = (),
) -> list[Matched]:
    """The trained reward at equal FID, or without features at equal seconds; each reward if that one was not measured.

    A reward that nobody trained on has no best place on a run's path: it is told at the trained one's.
    """
    from align3d.matched import matched

    ways = [by for by in ("fid", "seconds", "step") if all(math.isfinite(p[by]) for c in curves for p in c.points)]
    told = [trained] if trained in rewards else rewards
    return [matched(curves, name, ways[0], list(levels) or None, without=without) for name in told]


def write(options: Compare, work: Plan, paths: Sequence[Trail], found: dict[str, Evaluation]) -> None:
    """table.json, table.md and report.html, and the tables on standard output."""
    from dataclasses import asdict

    from align3d.evaluation_report import write_comparison
    from align3d.files import atomic_write
    from align3d.log import plain
    from align3d.results import as_dicts, markdown, protocol

    base, results = found["base"], results_of(paths, found)
    trained = paths[0].newest.run.part("reward")
    curves = curves_of(paths, {name: result.numbers for name, result in results.items()})
    blocks = [
        curves_of(paths, {name: result.blocks[g] for name, result in results.items()})
        for g in range(len(results["base"].blocks))
    ]
    check_levels(options.levels, curves)
    tables = tables_of(curves, base.rewards, options.levels, trained, blocks)
    beside = [name for name in results["base"].numbers if name != "fid"]
    texts = [
        f"## {t.of} at equal {t.by}\n\n{t.markdown([n for n in beside if n != t.of] + ['seconds'])}" for t in tables
    ]
    sources = {path.name: {"folder": str(path.folder), "group": path.group, "seed": path.seed} for path in paths}
    table = {
        "settings": work.about,
        "trained_on": trained,
        "runs": sources,
        "matched": [t.as_dict() for t in tables],
        "curves": [asdict(curve) for curve in curves],
        "prompts": base.prompts,
        "results": as_dicts(list(results.values())),
    }
    atomic_write(work.out / "table.json", json.dumps(plain(table), ensure_ascii=False, indent=1) + "\n")
    every = markdown(list(results.values()), base.prompts, dict.fromkeys(results, trained))
    distances = {p.name: [d for s in p.chosen if (d := results[p.called(s)].fid) is not None] for p in paths}
    note = unmoved(distances)
    text = "\n".join([*filter(None, [note]), *texts, "## Every checkpoint", "", every])
    atomic_write(work.out / "table.md", protocol(work.about) + text)
    pictures = {"base": base} | {path.name: found[path.checkpoints[-1].name] for path in paths}
    arguments = (list(results.values()), pictures, curves, tables, trained, work.about)
    page = write_comparison(work.out / "report.html", *arguments)
    print("\n".join([texts[0], note]))
    print(f"written: {page}", flush=True)
