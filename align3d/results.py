"""What sets of samples say of models: rewards, their change against the base, FID with its floor, diversity.

Samples of one prompt are alike, so all intervals are over prompts: bootstrap for means, jackknife for distances.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from align3d.evaluate import Change, Evaluation, between, change, compare, interval, number
from align3d.intervals import jackknife_error, jackknife_interval
from align3d.metrics import Reference, diversity, without_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

BASE = "base"  # what the untuned model is called in tables


@dataclass(frozen=True)
class Distance:
    """A multi-view FID to samples of the base model with other seeds."""

    value: float
    error: float | None  # standard error, jackknife over blocks of prompts; None with one prompt
    low: float | None  # 95 % interval
    high: float | None
    above: float  # value minus that of the base model's own samples, which is the floor; 0 for the base
    above_low: float | None  # 95 % interval of the difference
    above_high: float | None

    @property
    def sure(self) -> bool:
        """Whether it is above the floor for sure."""
        return self.above_low is not None and self.above_low > 0


@dataclass(frozen=True)
class Result:
    """A model's numbers."""

    name: str
    rewards: dict[str, float]  # means: over the views, an asset's; over the seeds, a prompt's; over the prompts
    changes: tuple[Change, ...]  # of the rewards against the base, paired; none for the base itself
    fid: Distance | None
    diversity: float | None  # mean cosine distance between the seeds of a prompt
    diversity_change: Change | None  # against the base
    moved: float | None  # RMS distance of the pixels to the base's pictures, in [0, 1]; None without pictures
    prompts: dict[str, list[float]]  # reward or "diversity" -> a number for each prompt
    blocks: list[dict[str, float]]  # the numbers without one block of prompts and then the next, less "moved"

    @property
    def numbers(self) -> dict[str, float]:
        """Rewards, "fid", "diversity" and "moved", as far as there are such."""
        found = dict(self.rewards)
        if self.fid is not None:
            found["fid"] = self.fid.value
        if self.diversity is not None:
            found["diversity"] = self.diversity
        if self.moved is not None:
            found["moved"] = self.moved
        return found

    def all_changes(self) -> tuple[Change, ...]:
        """Those of the rewards, then that of the diversity."""
        return (*self.changes, *([self.diversity_change] if self.diversity_change is not None else []))


def all_results(base: Evaluation, reference: Evaluation | None, tuned: Mapping[str, Evaluation]) -> list[Result]:
    """The numbers of the base model and of tuned ones.

    Args:
        base: The base model's samples, with the seeds of the evaluation.
        reference: Its samples with other seeds, as many; None or without features gives no FID.
        tuned: Name -> samples of a tuned model, of the same prompts and seeds as the base's.

    Returns:
        The base's first.

    Raises:
        ValueError: If the samples do not pair up.
    """
    others = None
    if reference is not None and reference.features is not None and base.features is not None:
        others = Reference(reference.features.flatten(1, 2), base.features.flatten(1, 2))
    return [_base(base, others), *(_tuned(name, seen, base, others) for name, seen in tuned.items())]


def _base(base: Evaluation, reference: Reference | None) -> Result:
    fid, without = None, None
    if reference is not None:
        value, without = reference.floor
        fid = Distance(value, jackknife_error(without), *_span(value, without, 0.0), 0.0, None, None)
    return _result(BASE, base, (), fid, None, None if base.pictures is None else 0.0, without)


def _tuned(name: str, tuned: Evaluation, base: Evaluation, reference: Reference | None) -> Result:
    comparison = compare(base, tuned)
    varied = [_diversity(seen) for seen in (base, tuned)]
    spread = None if varied[0] is None or varied[1] is None else change("diversity", varied[0], varied[1])
    fid, without = _distance(tuned, reference)
    return _result(name, tuned, comparison.changes, fid, spread, comparison.moved, without)


def markdown(results: Sequence[Result], prompts: Sequence[str], trained: Mapping[str, str | None]) -> str:
    """Tables: the models, their changes against the base, and every prompt.

    Args:
        results: The base first.
        prompts: Those of the evaluation.
        trained: Model -> the reward that it was trained on, as far as known.
    """
    base, *tuned = results
    names = list(base.numbers)
    heads = ["", *["FID (95 % interval)" if name == "fid" else name for name in names], "trained on"]
    lines = table(heads, [[escape(r.name), *_cells(r, base), escape(trained.get(r.name) or "")] for r in results])
    if tuned:
        heads = ["", "", BASE, "tuned", "change", "95 % interval", "z", "went up"]
        lines += ["", "## Changes against the base", "", *table(heads, list(_changed(tuned)), left=2)]
    lines += ["", "## Prompts"]
    for name in base.prompts:
        rows = [[escape(p), *(number(r.prompts[name][i]) for r in results)] for i, p in enumerate(prompts)]
        lines += ["", f"### {name}", "", *table(["", *(escape(r.name) for r in results)], rows)]
    return "\n".join([*lines, ""])


def protocol(about: Mapping[str, Any]) -> str:
    """What was measured, in a line.

    Args:
        about: As evaluation.json has it.
    """
    return (
        f"Model {about['model']['name']}; {about['prompts']} prompts, {about['num']} seeds each from {about['seed']}, "
        f"{about['views']} views of {about['size']} pixels; features: {about['features']['name']}.\n\n"
    )


def as_dicts(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Everything, for JSON."""
    return [asdict(result) for result in results]


def fid_text(distance: Distance | None) -> str:
    """A distance with its interval."""
    if distance is None or distance.low is None or distance.high is None:
        return number(None if distance is None else distance.value)
    return f"{number(distance.value)} ({between(distance.low, distance.high, like=distance.value)})"


def _cells(result: Result, base: Result) -> list[str]:
    return [
        fid_text(result.fid) if name == "fid" else number(value, like=base.numbers.get(name))
        for name, value in result.numbers.items()
    ]


def _changed(tuned: Sequence[Result]) -> Iterator[list[str]]:
    for result in tuned:
        for c in result.all_changes():
            cells = [number(c.base), number(c.tuned), number(c.change, sign=True), interval(c)]
            cells += ["" if c.z is None else f"{c.z:+.1f}", "" if c.wins is None else f"{100 * c.wins:.0f} %"]
            yield [escape(result.name), escape(c.name), *cells]
        if result.fid is not None:
            d = result.fid
            span = between(d.above_low, d.above_high, True, d.above)
            floor = number(d.value - d.above)
            yield [escape(result.name), "FID", floor, number(d.value), number(d.above, sign=True), span, "", ""]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """The lines of a table in Markdown; the first `left` columns are texts, the others numbers."""
    rule = "|" + "---|" * left + "--:|" * (len(heads) - left)
    return ["| " + " | ".join(heads) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows)]


def escape(text: str) -> str:
    """A text as Markdown shows it in a table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _result(
    name: str,
    seen: Evaluation,
    changes: tuple[Change, ...],
    fid: Distance | None,
    spread: Change | None,
    moved: float | None,
    fid_without: Sequence[float] | None,
) -> Result:
    each = {reward: seen.scores[..., i].mean(1) for i, reward in enumerate(seen.rewards)}
    means = {reward: float(values.mean()) for reward, values in each.items()}
    varied = _diversity(seen)
    if varied is not None:
        each["diversity"] = varied
    blocks = [
        {number: float(values[keep].mean()) for number, values in each.items()}
        for keep in without_blocks(len(seen.prompts))
    ]
    for block, value in zip(blocks, fid_without or [], strict=fid_without is not None):
        block["fid"] = value
    return Result(
        name=name,
        rewards=means,
        changes=changes,
        fid=fid,
        diversity=None if varied is None else float(varied.mean()),
        diversity_change=spread,
        moved=moved,
        prompts={name: values.tolist() for name, values in each.items()},
        blocks=blocks,
    )


def _diversity(seen: Evaluation) -> Float[Tensor, "P"] | None:
    return None if seen.features is None or len(seen.seeds) < 2 else diversity(seen.features)


def _distance(seen: Evaluation, reference: Reference | None) -> tuple[Distance | None, list[float] | None]:
    """The FID of a tuned model's set, how far it is above that of the base's own, and the FIDs without each block."""
    if reference is None or seen.features is None:
        return None, None
    value, without = reference.distance(seen.features.flatten(1, 2))
    floor, floor_without = reference.floor
    above = _span(value - floor, [a - b for a, b in zip(without, floor_without, strict=True)])
    return Distance(value, jackknife_error(without), *_span(value, without, 0.0), value - floor, *above), without


def _span(value: float, without: Sequence[float], least: float = -math.inf) -> tuple[float | None, float | None]:
    """The 95 % interval of a statistic that cannot be below `least`, from its values without each block."""
    low, high = jackknife_interval(value, without) or (None, None)
    return None if low is None else max(low, least), high
