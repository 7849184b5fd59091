"""Reward at equal forgetting: runs compared where they have paid the same, not where they happened to stop.

Raw reward lets the hackers win: whoever trains longest or hardest has the highest. So every run is evaluated at several
of its checkpoints, which gives a path from the base model to where training ended, and runs are compared where they are
best without being farther from the base than one level of the Frechet distance (or without having taken more seconds,
or evaluations of the network).

Between checkpoints a path is straight in the reward and in the root of the distance above the floor: the Frechet
distance is a square, so that a model which moves evenly pays it slowly at first. Straight in the distance itself, a run
with long segments would seem worse than it is.

Source: the protocol is that of the Nabla-R2D3 paper, Table 5, which picks the checkpoints of nearest FID by hand.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Literal

from align3d.evaluate import between, number
from align3d.intervals import jackknife_interval, mean_interval, t_quantile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Rule = Literal["best", "first"]

LEVELS = 4  # compared by default
COUNTERS = ("step", "seconds", "evaluations")  # what a point has besides its measured numbers
SQUARED = ("fid",)  # squared distances from the base model


@dataclass(frozen=True)
class Point:
    """A checkpoint of a run, evaluated."""

    step: int  # updates done; 0 is the base model
    seconds: float | int  # of training until here
    evaluations: float | int  # of the network, in training until here
    numbers: dict[str, float] = field(default_factory=dict)  # what was measured: a reward's name, "fid", ...

    def __getitem__(self, name: str) -> float:
        """A counter or a number; NaN if it was not measured."""
        return float(getattr(self, name) if name in COUNTERS else self.numbers.get(name, math.nan))


@dataclass(frozen=True)
class Curve:
    """One run from the base model to its end."""

    group: str  # runs that differ in their seed only; a method, as a rule
    seed: int  # of the training
    points: tuple[Point, ...]  # in the order of training; the first is the base model

    def __post_init__(self) -> None:
        steps = [point.step for point in self.points]
        if not steps or steps[0] != 0:
            raise ValueError(f"{self} must begin with the base model, step 0; evaluate it with the same cameras")
        if any(a >= b for a, b in itertools.pairwise(steps)):
            raise ValueError(f"the checkpoints of {self} must be in the order of training, got steps {steps}")

    def __str__(self) -> str:
        return f"run {self.group!r}, seed {self.seed}"

    def column(self, name: str) -> list[float]:
        """A number along the run.

        Raises:
            ValueError: If it was not measured everywhere, or is not finite.
        """
        values = [point[name] for point in self.points]
        for point, value in zip(self.points, values, strict=True):
            if not math.isfinite(value):
                have = ", ".join((*point.numbers, *COUNTERS))
                raise ValueError(f"{self} has no {name!r} at step {point.step}; measured there: {have}")
        return values


@dataclass(frozen=True)
class Place:
    """A place on a run's path, between two checkpoints or on one."""

    value: float  # of what was asked for
    numbers: dict[str, float]  # every counter and number there, interpolated
    short: bool  # whether no checkpoint of the run is above the level: it could have gone on


@dataclass(frozen=True)
class Row:
    """A group at a level."""

    level: float
    group: str
    seeds: int  # runs
    short: int  # runs that never reach the level, whose whole path was used
    value: float | None  # mean over the runs; None where the base model of one is above the level already
    error: float | None  # standard error over the runs; None with one
    low: float | None  # 95 % t-interval over the runs
    high: float | None
    prompts: tuple[float, float] | None = None  # 95 % interval over prompts: jackknife over blocks of them
    numbers: dict[str, float] = field(default_factory=dict)  # means of the other numbers at the same places


@dataclass(frozen=True)
class Difference:
    """Two groups at a level: group minus against."""

    level: float
    group: str
    against: str
    paired: bool  # seed by seed; else as two independent groups
    change: float
    error: float | None  # None with one run
    low: float | None  # 95 % t-interval over the runs
    high: float | None
    prompts: tuple[float, float] | None = None  # 95 % interval over prompts: jackknife over blocks of them

    @property
    def certain(self) -> bool:
        """Whether the interval over the runs leaves out 0, and so does that over prompts, if there is one."""
        if self.low is None or self.high is None:
            return False
        spans = [(self.low, self.high), *([self.prompts] if self.prompts is not None else [])]
        return all(low > 0 for low, _ in spans) or all(high < 0 for _, high in spans)


@dataclass(frozen=True)
class Matched:
    """Groups of runs compared at levels of what they paid."""

    of: str
    by: str
    levels: tuple[float, ...]  # ascending
    rows: tuple[Row, ...]  # by level, then by value, best first
    differences: tuple[Difference, ...]  # by level; the better group first, unless one to compare with was named

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)

    def markdown(self, numbers: Sequence[str] = ()) -> str:
        """Two tables: groups at each level, and differences at each level.

        Args:
            numbers: Others to show beside, such as "dnc", "clip", "diversity" or "seconds".
        """
        titles = [f"{self.by} at most", "", "runs", self.of, "95 % over runs", "over prompts", *numbers, "unspent"]
        lines = [_cells(titles), "|--:|---|--:|--:|:-:|:-:|" + "--:|" * len(numbers) + "---|"]
        for row in self.rows:
            cells = [number(row.level), row.group, str(row.seeds), number(row.value), *_intervals(row, row.value)]
            cells += [number(row.numbers.get(name)) for name in numbers]
            lines.append(_cells([*cells, f"{row.short} of {row.seeds}" if row.short else ""]))
        if self.differences:
            titles = [f"{self.by} at most", f"difference in {self.of}", "", "95 % over runs", "over prompts", "sure"]
            lines += ["", _cells(titles), "|--:|---|--:|:-:|:-:|---|"]
        for d in self.differences:
            name, sure = f"{d.group} - {d.against}", "yes" if d.certain else "no" if d.low is not None else ""
            lines.append(_cells([number(d.level), name, number(d.change, True), *_intervals(d, d.change, True), sure]))
        note = f"Best {self.of} on a run's path with {self.by} at most the level; means over training seeds,"
        note += " differences paired by seed where the seeds agree. Unspent: runs that never reach the level."
        note += " Sure: both intervals leave out 0."
        return "\n".join([*lines, "", note, ""])


def place(curve: Curve, by: str, level: float | int, of: str, rule: Rule = "best") -> Place | None:
    """Where a run is best without having paid more than a level; None if all of it, the base model too, is above.

    A run is the path through its checkpoints; see the top for what is straight between them. With `rule="best"` it is
    the best place of the whole path where `by` is at most the level, the earliest of equals: what a user gets who keeps
    checkpoints and chooses one under a limit. It never falls as the level rises. With "first" it is where the path
    first rises above the level, or its end.

    Best is the default for what it asks, and because a first crossing means nothing near the base model, where the
    distance goes up and down by as much as it grows: a run that hovers there has crossed before it learnt anything,
    and is compared by chance. Under noise both err, to opposite sides: the best of many noisy places is too good, the
    first of many noisy crossings too early. With a noise of 5 % of the range of the distance and 2 % of that of the
    reward, best is off by +0.5 % of the range at 10 checkpoints and +2 % at 40, first by +0.2 % and -2 %; so give all
    runs about as many checkpoints, and about ten.

    Args:
        curve: A run.
        by: What is paid: "fid", "seconds", "evaluations", "step", or any number that was measured.
        level: At most so much of it.
        of: What is compared; higher is better.
        rule: As above.

    Raises:
        ValueError: If one of the two was not measured at every checkpoint.
    """
    paid, value = curve.column(by), curve.column(of)
    candidates: list[tuple[float, int, float]] = []  # value, segment, where on it in [0, 1]
    for i, u in _feasible(*evenly(by, paid, level), stop=rule == "first"):
        candidates.append((_mix(value, i, u), i, u))
    if not candidates:
        return None
    # max takes the first of equals, which is the earliest
    best, i, u = candidates[-1] if rule == "first" else max(candidates, key=lambda c: c[0])
    names = dict.fromkeys((*COUNTERS, *(name for point in curve.points for name in point.numbers)))
    columns = {name: [point[name] for point in curve.points] for name in names}
    numbers = {name: _mix(column, i, u, name in SQUARED) for name, column in columns.items()}
    return Place(best, numbers, short=max(paid) < level)


def crossing(curve: Curve, by: str, level: float | int) -> tuple[int, float] | None:
    """Where a path first rises above a level: the checkpoint before, and how far on towards the next, in [0, 1)."""
    paid, limit = evenly(by, curve.column(by), level)
    found = [(i, (limit - a) / (b - a)) for i, (a, b) in enumerate(itertools.pairwise(paid)) if a <= limit < b]
    return found[0] if found else None


def at(curve: Curve, by: str, level: float | int, of: str, rule: Rule = "best") -> float:
    """The value of `of` at `place`; NaN where there is none."""
    found = place(curve, by, level, of, rule)
    return math.nan if found is None else found.value


def matched(
    curves: Sequence[Curve],
    of: str,
    by: str = "fid",
    levels: Sequence[float | int] | None = None,
    against: str | None = None,
    rule: Rule = "best",
    without: Sequence[Sequence[Curve]] = (),
) -> Matched:
    """Groups of runs compared at equal `by`, with intervals over their seeds and over prompts.

    Args:
        curves: Runs, of any number of groups.
        of: What is compared; higher is better.
        by: What is paid; see `place`.
        levels: Of `by`; None takes `default_levels`.
        against: The group that all others are compared with; None compares all pairs.
        rule: See `place`.
        without: For each of a few blocks of prompts, the same runs measured without it; none gives no intervals over
            prompts. What the level is above the base model's own `by` is the same without each block.

    Raises:
        ValueError: If there are no runs, a group has a seed twice, `against` is no group, a level is not finite, or a
            number was not measured at every checkpoint.
    """
    groups = grouped(curves)
    if against is not None and against not in groups:
        raise ValueError(f"nothing to compare with: no runs of {against!r}, only of {', '.join(groups)}")
    chosen = default_levels(curves, by) if levels is None else tuple(sorted({float(level) for level in levels}))
    if not chosen or not all(math.isfinite(level) for level in chosen):
        raise ValueError(f"levels of {by} must be finite numbers, one or more, got {list(chosen)}")
    rows, differences = [], []
    for level in chosen:
        places = {name: [place(c, by, level, of, rule) for c in runs] for name, runs in groups.items()}
        blocks = [_means(curves, part, by, level, of, rule) for part in without]
        here = [_row(level, name, found, [block.get(name) for block in blocks]) for name, found in places.items()]
        here.sort(key=lambda row: -math.inf if row.value is None else row.value, reverse=True)
        rows += here
        values = {  # of the groups all of whose runs reach the level, best first
            row.group: {c.seed: p.value for c, p in zip(groups[row.group], places[row.group], strict=True) if p}
            for row in here
            if row.value is not None and not row.short  # who never was there is not compared there
        }
        pairs = itertools.combinations(values, 2)
        if against is not None:
            pairs = ((name, against) for name in values if name != against and against in values)
        for a, b in pairs:
            parts = [None if a not in block or b not in block else block[a] - block[b] for block in blocks]
            differences.append(_difference(level, a, b, values[a], values[b], parts))
    return Matched(of, by, chosen, tuple(rows), tuple(differences))


def grouped(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    """The runs of each group, in order of first appearance, by seed.

    Raises:
        ValueError: If there are none, or a group has a seed twice.
    """
    if not curves:
        raise ValueError("nothing to compare: give one run or more")
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        if any(curve.seed == other.seed for other in groups.setdefault(curve.group, [])):
            raise ValueError(f"{curve} is there twice, which would count it twice; drop one or name it otherwise")
        groups[curve.group].append(curve)
    return {name: sorted(runs, key=lambda c: c.seed) for name, runs in groups.items()}


def floor(curves: Sequence[Curve], by: str = "fid") -> float:
    """What the base model itself has of `by`, the largest of all runs: a distance between two sets of its samples."""
    return max(curve.column(by)[0] for curve in curves)


def default_levels(curves: Sequence[Curve], by: str = "fid") -> tuple[float, ...]:
    """A few levels, evenly spaced from above the floor to where half of the groups still are, and where the last is.

    The highest is the largest that half of the groups and at least two of them reach, in the mean of their runs; with
    two groups, what both reach. A group that hardly moves would else have all others compared before they have moved:
    it adds the level of its own reach, and above that it counts as unspent. Without a group above the floor, the floor.
    """
    reaches = sorted(fmean(max(c.column(by)) for c in runs) for runs in grouped(curves).values())
    low, least = floor(curves, by), reaches[0]
    high = reaches[-max(min(2, len(reaches)), math.ceil(len(reaches) / 2))]
    if high <= low:
        return (low,)
    even = [low + (high - low) * i / LEVELS for i in range(1, LEVELS)]
    return tuple(sorted({*even, high} | ({least} if least > low else set())))


def _feasible(paid: Sequence[float], level: float, stop: bool) -> Iterator[tuple[int, float]]:
    """The ends, as (segment, fraction), of the pieces of a path where `paid` is at most the level, in order.

    A number that is linear on each segment is largest at one of them.

    Args:
        paid: At the checkpoints.
        level: The limit.
        stop: Whether to end where the path first rises above the level.
    """
    if paid[0] <= level:
        yield 0, 0.0
    for i, (a, b) in enumerate(itertools.pairwise(paid)):
        if (a <= level) != (b <= level):
            yield i, (level - a) / (b - a)
            if stop and b > level:
                return
        if b <= level:
            yield i, 1.0


def evenly(by: str, paid: Sequence[float], level: float | int) -> tuple[list[float], float]:
    """What was paid along a run, and a level of it, such that even steps of the model cost the same."""
    if by not in SQUARED:
        return list(paid), float(level)
    return [_root(value - paid[0]) for value in paid], _root(level - paid[0])


def _root(x: float) -> float:
    """The root, with the sign of x: by chance, a distance may be below the floor."""
    return math.copysign(math.sqrt(abs(x)), x)


def _mix(values: Sequence[float], i: int, u: float, squared: bool = False) -> float:
    """A number at a place; exactly the checkpoint's where it is one."""
    if u == 0 or len(values) == 1:
        return values[i]
    if u == 1:
        return values[i + 1]
    if squared:
        a, b = (_root(value - values[0]) for value in values[i : i + 2])
        root = a + u * (b - a)
        return values[0] + root * abs(root)
    return values[i] + u * (values[i + 1] - values[i])


def _means(
    curves: Sequence[Curve], without: Sequence[Curve], by: str, level: float, of: str, rule: Rule
) -> dict[str, float]:
    """The mean of each group at a level, measured without a block of prompts; left out where a run has no place."""
    found: dict[str, list[Place | None]] = {}
    for whole, part in zip(curves, without, strict=True):
        shifted = level + part.points[0][by] - whole.points[0][by]
        found.setdefault(whole.group, []).append(place(part, by, shifted, of, rule))
    return {name: fmean(p.value for p in places if p) for name, places in found.items() if all(places)}


def _over_prompts(value: float | None, without: Sequence[float | None]) -> tuple[float, float] | None:
    known = [one for one in without if one is not None]
    return jackknife_interval(value, known) if value is not None and len(known) == len(without) else None


def _row(level: float, group: str, places: Sequence[Place | None], without: Sequence[float | None]) -> Row:
    found = [p for p in places if p is not None]
    short = sum(p.short for p in found)
    if len(found) < len(places):  # a mean over the lucky ones would not be of the group
        return Row(level, group, len(places), short, None, None, None, None)
    names = dict.fromkeys(name for p in found for name in p.numbers)
    means = {name: fmean(p.numbers.get(name, math.nan) for p in found) for name in names}
    means = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    value, *spread = mean_interval([p.value for p in found])
    return Row(level, group, len(places), short, value, *spread, _over_prompts(value, without), means)


def _difference(
    level: float, a: str, b: str, x: dict[int, float], y: dict[int, float], without: Sequence[float | None]
) -> Difference:
    """One group minus another, from the values of each seed, and from the means without each block of prompts."""
    change = fmean(x.values()) - fmean(y.values())
    prompts = _over_prompts(change, without)
    if x.keys() == y.keys():
        return Difference(level, a, b, True, *mean_interval([x[seed] - y[seed] for seed in x]), prompts)
    if min(len(x), len(y)) < 2:
        return Difference(level, a, b, False, change, None, None, None, prompts)
    # Welch: the variances need not be equal. The degrees of freedom are rounded down, to the wider interval.
    parts = [(stdev(v.values()) ** 2 / len(v), len(v) - 1) for v in (x, y)]
    total = sum(v for v, _ in parts)
    df = math.floor(total**2 / sum(v**2 / n for v, n in parts)) if total else min(n for _, n in parts)
    half = t_quantile(max(df, 1)) * math.sqrt(total)
    return Difference(level, a, b, False, change, math.sqrt(total), change - half, change + half, prompts)


def _intervals(row: Row | Difference, like: float | None, sign: bool = False) -> list[str]:
    """The intervals over runs and over prompts in words, with the decimals of the number they belong to."""
    return [between(*span, sign, like) for span in ((row.low, row.high), row.prompts or (None, None))]


def _cells(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cell.replace("\\", "\\\\").replace("|", "\\|") for cell in cells) + " |"
