"""How methods stand: the mean of each reward with its interval, and the difference to the first method.

A prompt is what is counted: its number is the mean over its views and seeds. Methods have the same prompts, and are
compared prompt by prompt, which leaves out how hard each one is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from align3d.evaluate import Change, between, change, interval, number
from align3d.intervals import interval_of_mean
from align3d.results import escape, table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from align3d.intervals import Kind
    from align3d.judged.pieces import Method
    from align3d.prompt_lists import PromptList

ALL = "all"  # what all prompts together are called, where there are categories


@dataclass(frozen=True)
class Mean:
    """A mean over prompts."""

    value: float
    low: float | None  # 95 % interval; None with one prompt
    high: float | None

    @property
    def text(self) -> str:
        """With its interval."""
        span = between(self.low, self.high, like=self.value)
        return number(self.value) + (f" ({span})" if span else "")


@dataclass(frozen=True)
class Standing:
    """A method's numbers."""

    name: str
    seeds: int  # results of each prompt
    prompts: dict[str, list[float]]  # reward -> a number for each prompt
    means: dict[str, Mean]
    changes: tuple[Change, ...]  # against the first method, by reward; none for the first itself
    categories: dict[str, dict[str, Mean]]  # category -> reward -> mean
    category_changes: dict[str, tuple[Change, ...]]


@dataclass(frozen=True)
class Statistics:
    """How intervals are made."""

    seed: int = 0
    kind: Kind = "percentile"

    def mean(self, values: Sequence[float]) -> Mean:
        """Of some prompts."""
        value, _, low, high = interval_of_mean(values, self.seed, self.kind)
        return Mean(value, low, high)

    def change(self, name: str, before: Sequence[float], after: Sequence[float]) -> Change:
        """From one method to another, over the same prompts."""
        import torch

        first, second = (torch.tensor(values, dtype=torch.float64) for values in (before, after))
        wins = float((second > first).double().mean() + (second == first).double().mean() / 2)
        return change(name, first, second, self.seed, wins, self.kind)


def standings(
    methods: Sequence[Method],
    scores: Mapping[str, Mapping[str, Sequence[Sequence[float]]]],
    prompts: PromptList,
    how: Statistics,
) -> list[Standing]:
    """The numbers of methods, in their order.

    Args:
        methods: The first is what the others are compared with.
        scores: Method -> reward -> for each of its results, prompt by prompt, a number for each view.
        prompts: Those of the methods.
        how: Intervals are made.
    """
    found: list[Standing] = []
    groups: dict[str, list[int]] = {}
    for i, category in enumerate(prompts.categories or ()):
        groups.setdefault(category, []).append(i)
    for method in methods:
        each = {label: by_prompt(method, values) for label, values in scores[method.name].items()}
        first = found[0].prompts if found else None

        def against(rows: Sequence[int], each: Any = each, first: Any = first) -> tuple[Change, ...]:
            if first is None:
                return ()
            pairs = {label: [[values[i] for i in rows] for values in (first[label], each[label])] for label in each}
            return tuple(how.change(label, *pair) for label, pair in pairs.items())

        found.append(
            Standing(
                name=method.name,
                seeds=len(method.pieces[0]),
                prompts=each,
                means={label: how.mean(values) for label, values in each.items()},
                changes=against(range(len(prompts.prompts))),
                categories={
                    name: {label: how.mean([values[i] for i in rows]) for label, values in each.items()}
                    for name, rows in groups.items()
                },
                category_changes={name: against(rows) for name, rows in groups.items()} if found else {},
            )
        )
    return found


def by_prompt(method: Method, values: Sequence[Sequence[float]]) -> list[float]:
    """A number for each prompt: the mean over its results of their means over views."""
    each, start, found = [fmean(views) for views in values], 0, []
    for pieces in method.pieces:
        found.append(fmean(each[start : start + len(pieces)]))
        start += len(pieces)
    return found


def markdown(found: Sequence[Standing], prompts: PromptList) -> str:
    """Tables: the methods, their differences to the first, categories, and every prompt."""
    first, *others = found
    labels = list(first.prompts)
    rows = [[escape(one.name), *(one.means[label].text for label in labels)] for one in found]
    lines = table(["mean (95 % interval)", *map(escape, labels)], rows)
    if others:
        lines += ["", f"## Differences to {escape(first.name)}, paired by prompt", ""]
        heads = ["", "", first.name, "", "difference", "95 % interval", "z", "better"]
        lines += table(heads, [_change(one.name, c) for one in others for c in one.changes], left=2)
    for label in labels if first.categories else ():
        lines += ["", f"## Categories: {escape(label)}", "", *_categories(found, label, prompts)]
    lines += ["", "## Prompts"]
    for label in labels:
        rows = [[escape(p), *(number(one.prompts[label][i]) for one in found)] for i, p in enumerate(prompts.prompts)]
        lines += ["", f"### {escape(label)}", "", *table(["", *(escape(one.name) for one in found)], rows)]
    return "\n".join([*lines, ""])


def _change(name: str, c: Change) -> list[str]:
    cells = [number(c.base), number(c.tuned), number(c.change, sign=True), interval(c)]
    return [escape(name), escape(c.name), *cells, "" if c.z is None else f"{c.z:+.1f}", wins(c)]


def wins(c: Change) -> str:
    """The share of prompts of which a method is the better one."""
    return "" if c.wins is None else f"{100 * c.wins:.0f} %"


def _categories(found: Sequence[Standing], label: str, prompts: PromptList) -> list[str]:
    """A reward by category; with the last column's difference where there are two methods."""
    counts = {name: (prompts.categories or ()).count(name) for name in found[0].categories}
    heads = ["", "prompts", *(escape(one.name) for one in found)]
    two = len(found) == 2
    rows = []
    for name, count in {**counts, ALL: len(prompts.prompts)}.items():
        means = [one.means[label] if name == ALL else one.categories[name][label] for one in found]
        row = [escape(name or "none"), str(count), *(mean.text for mean in means)]
        if two:
            changes = found[1].changes if name == ALL else found[1].category_changes[name]
            c = next(c for c in changes if c.name == label)
            span = interval(c)
            row.append(number(c.change, sign=True) + (f" ({span})" if span else ""))
        rows.append(row)
    return table([*heads, "difference"] if two else heads, rows)


def as_dict(found: Sequence[Standing]) -> list[dict[str, Any]]:
    """Everything, for JSON."""
    return [asdict(one) for one in found]
