"""`align3d evaluate`: the base model and any number of tuned ones, measured on the same prompts and seeds."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from align3d.commands import adapters
from align3d.commands.flags import value_of
from align3d.commands.judging import Measuring

if TYPE_CHECKING:
    from collections.abc import Sequence

    from align3d.commands.adapters import Tuned
    from align3d.commands.judging import Plan
    from align3d.evaluate import Evaluation


def first_run(args: Sequence[str]) -> Path | None:
    """The folder of the first of --runs, if there is one."""
    text = value_of("--runs", args)
    return None if text is None else adapters.split(text)[1]


@dataclass(frozen=True, kw_only=True)
class Evaluate(Measuring):
    """Measure the base model and tuned ones: rewards, FID to the base, diversity; table and page.

    Every prompt is sampled with every seed by every model, with the same noise, and seen by the same cameras, none of
    them a training view. Rewards are means over the views of an asset, the assets of a prompt, and the prompts. The
    multi-view FID is the distance to samples that the base makes of other seeds; the base's own is the floor. A second
    start with the same arguments goes on where the first one ended; more --runs may be added. Under torchrun, the
    processes share the prompts.
    """

    runs: tuple[str, ...] = ()  # NAME=RUN ..., NAME=RUN@UPDATE of a checkpoint, or NAME=FOLDER of an adapter

    earlier: ClassVar[Any] = staticmethod(first_run)


def run(options: Evaluate, *, names: dict[str, str], model: Any, features: Any) -> None:
    """Measure what is not there yet, then write table and page."""
    from align3d.commands.judging import gather, plan

    tuned = [adapters.find(text) for text in options.runs]
    twice = next((one.name for i, one in enumerate(tuned) if one.name in [o.name for o in tuned[:i]]), None)
    if twice is not None:
        raise ValueError(f"two of --runs are called {twice!r}; tell them apart with NAME=RUN")
    adapters.check_models(tuned, names["model"])
    work = plan(options, names, model, features, "evaluate")
    found = gather(work, tuned, adapters.Models(model, names["model"], options.device))
    if found is not None:
        write(work, tuned, found)


def paths_of(tuned: Sequence[Tuned]) -> dict[str, list[str]]:
    """The runs of which several checkpoints are there, and the names of those in the order of training."""
    found: dict[Path, list[Tuned]] = {}
    for one in tuned:
        found.setdefault(one.home, []).append(one)
    paths = {home: ones for home, ones in found.items() if len(ones) > 1}
    short = [home.name for home in paths]
    return {
        home.name if short.count(home.name) == 1 else str(home): [one.name for one in sorted(ones, key=order)]
        for home, ones in paths.items()
    }


def order(one: Tuned) -> float:
    """Its place along its run; the newest adapter, whose update has no number, is the last."""
    return math.inf if one.step is None else float(one.step)


def write(work: Plan, tuned: Sequence[Tuned], found: dict[str, Evaluation]) -> None:
    """table.json, table.md and report.html, and the table on standard output."""
    from align3d.evaluation_report import write_evaluation
    from align3d.files import atomic_write
    from align3d.results import all_results, as_dicts, markdown, protocol

    base = found["base"]
    results = all_results(base, found.get("reference"), {one.name: found[one.name] for one in tuned})
    trained = {one.name: one.trained_on for one in tuned}
    sources = {one.name: {"folder": str(one.folder), "update": one.step, "trained_on": one.trained_on} for one in tuned}
    table = {"settings": work.about, "prompts": base.prompts, "runs": sources, "results": as_dicts(results)}
    text = markdown(results, base.prompts, trained)
    atomic_write(work.out / "table.json", json.dumps(table, ensure_ascii=False, indent=1) + "\n")
    atomic_write(work.out / "table.md", protocol(work.about) + text)
    pictures = {name: found[name] for name in ("base", *trained)}
    page = write_evaluation(work.out / "report.html", results, pictures, trained, work.about, paths_of(tuned))
    print(text.partition("\n## Prompts")[0])
    print(f"written: {page}", flush=True)
