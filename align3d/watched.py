"""What watching a run has shown, for its report: do the rewards that it is not trained on follow the one that it is?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from align3d.charts import curves_chart, line_chart, number
from align3d.conditions import Base, Met, met, parse
from align3d.log import WATCHED
from align3d.matched import Curve, Point
from align3d.page import Html, h, join
from align3d.runs import is_number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from align3d.runs import Run

SURE = 2.0  # standard errors that a change must have to be called one
CHANGE = "change from the base model"  # what the curves of the rewards show


@dataclass(frozen=True)
class Look:
    """What was seen after some updates; the base model's numbers are those after none."""

    step: int
    numbers: Mapping[str, float]  # rewards, "diversity", "fid"; as NAME_error, standard errors


@dataclass(frozen=True)
class Watched:
    """All looks of a run."""

    rewards: list[str]  # the trained one is the first
    base: Look
    looks: list[Look]  # ascending; one or more
    spread: Mapping[str, float]  # of each reward over the base model's samples, standard deviation
    samples: str  # what is looked at, in words
    best: Mapping[str, Any]  # best.json

    @classmethod
    def of(cls, run: Run) -> Watched | None:
        """What a run's files tell; None if it was not watched or they are damaged."""
        about, looks = run.watch, [_look(row) for row in run.metrics]
        numbers, spread = about.get("numbers"), about.get("spread")
        looks = [look for look in looks if look.numbers]
        if not looks or not isinstance(numbers, dict) or not isinstance(spread, dict):
            return None
        base = Look(0, {name: float(numbers[name]) for name in numbers if is_number(numbers, name)})
        spread = {name: float(spread[name]) for name in spread if is_number(spread, name)}
        rewards = [name for name in spread if name in base.numbers and name in looks[-1].numbers]
        prompts, seeds = (about.get(name) if isinstance(about.get(name), list) else [] for name in ("prompts", "seeds"))
        samples = f"{len(prompts)} prompts with {len(seeds)} seeds each"
        return cls(rewards, base, looks, spread, samples, run.best) if rewards else None

    def change(self, name: str, look: Look | None = None) -> tuple[float, float]:
        """By how much a number differs from the base model's at a look (the last), and the standard error of that."""
        numbers = (look or self.looks[-1]).numbers
        error = numbers.get(f"{name}_error", math.nan)
        return numbers.get(name, math.nan) - self.base.numbers.get(name, math.nan), error


def _look(row: Mapping[str, Any]) -> Look:
    names = [name for name in row if name.startswith(WATCHED) and is_number(row, name)]
    return Look(int(row["step"]), {name.removeprefix(WATCHED): float(row[name]) for name in names})


def verdict(watched: Watched, stop_when: str = "") -> Html:
    """What the last look says, in a few sentences.

    Args:
        watched: All looks.
        stop_when: The condition that ends the run; "" if there is none.
    """
    trained, *others = watched.rewards
    last, (rise, error) = watched.looks[-1], watched.change(watched.rewards[0])
    changes = {name: watched.change(name) for name in others}
    fallen = {name: c for name, c in changes.items() if c[0] < -SURE * c[1]}
    rose, when = rise > SURE * error, f"After {last.step} update{'s' * (last.step != 1)}"
    if rose and fallen:
        texts = [f"{name} has fallen by {number(-c)} (± {number(e)})" for name, (c, e) in fallen.items()]
        said = f" {when}, {trained}, which is trained on, has risen by {number(rise)} (± {number(error)}), while "
        parts = [h("strong", "Reward hacking?", class_="down"), f"{said}{_and(texts)}."]
    elif rose:
        parts = [f"{when}, {trained}, which is trained on, has risen by {number(rise)} (± {number(error)})"]
        parts.append("; no watched reward has fallen by more than twice its standard error." if others else ".")
    else:
        parts = [f"{when}, {trained}, which is trained on, has not risen by more than twice its standard error."]
    if "fid" in last.numbers and "fid" in watched.base.numbers:
        more, e = watched.change("fid")
        floor = number(watched.base.numbers["fid"])
        parts.append(
            f" FID {number(last.numbers['fid'])}, {number(more, sign=True)} (± {number(e)}) above its floor of "
        )
        parts.append(f"{floor}, which is there without any training.")
    ended = _ended(watched, stop_when)
    if ended is not None:
        parts.append(f" That look ended the run: {ended}.")
    if is_number(watched.best, "step"):
        what = watched.best.get("best")
        parts.append(f" The adapter in best/ is that of update {watched.best['step']}, where {what} was highest.")
    return h("p", *parts)


def section(watched: Watched) -> Html:
    """Curves of the rewards, FID and diversity over the updates, and a table."""
    looks = [watched.base, *watched.looks]
    text = f"{watched.samples}, the same at every look and none of the training's samples. Step 0 is the base model."
    panels = [_panel("Rewards", "in standard deviations of the base model's samples", rewards(watched))]
    for name, heading, says in (
        (
            "fid",
            "FID",
            "to other samples of the base model; dashed: the floor, its own FID to them; band: ± standard error",
        ),
        (
            "diversity",
            "Diversity of the watched samples",
            "between the seeds of a prompt; dashed: the base model; band: ± standard error",
        ),
    ):
        at = [look for look in looks if name in look.numbers]
        values = [look.numbers[name] for look in at]
        floor = watched.base.numbers.get(name)
        steps, errors = [float(look.step) for look in at], [look.numbers.get(f"{name}_error", 0.0) for look in at]
        panels.append(_panel(heading, says, Html(line_chart(steps, values, heading, errors, smooth=False, base=floor))))
    shown = h("div", *[panel for panel in panels if panel], class_="panels")
    table = h("div", h("div", _table(watched), class_="panel"), class_="panels", style="margin-top:16px")
    return join(h("h2", "Watched"), h("p", text, class_="note"), shown, table)


def rewards(watched: Watched) -> Html:
    """The chart of all rewards, as changes from the base model in units of its samples' standard deviation."""
    curves = []
    for i, name in enumerate(watched.rewards):
        unit = watched.spread[name] or 1.0
        points = [Point(0, 0.0, 0.0, {CHANGE: 0.0})]
        points += [Point(look.step, 0.0, 0.0, {CHANGE: watched.change(name, look)[0] / unit}) for look in watched.looks]
        curves.append(Curve(f"{name}{' (trained on)' * (i == 0)}", 0, tuple(points)))
    return curves_chart(curves, CHANGE, "step")


def _table(watched: Watched) -> Html:
    """The base model, the best look and the last."""
    last = watched.looks[-1]
    best = next((look for look in watched.looks[:-1] if look.step == watched.best.get("step")), None)
    chosen = [look for look in (best, last) if look is not None]
    names = [*watched.rewards, *(name for name in ("fid", "diversity") if name in watched.base.numbers)]
    head = ["", "base", *(f"step {look.step}{' (best)' * (look is best)}" for look in chosen), "change", "± error"]
    rows = []
    for name in names:
        change, error = watched.change(name)
        tone = "" if not abs(change) > SURE * error else "up" if (change > 0) != (name == "fid") else "down"
        label = h("th", name, h("small", "trained on") if name == watched.rewards[0] else None, scope="row")
        cells = [number(watched.base.numbers.get(name)), *(number(look.numbers.get(name)) for look in chosen)]
        cells += [number(change, sign=True), number(error)]
        tones = [*[None] * (len(cells) - 2), tone or None, None]
        parts = zip(cells, head[1:], tones, strict=True)
        rows.append(h("tr", label, *(h("td", h("span", c), data_label=what, class_=t) for c, what, t in parts)))
    titles = h("tr", *(h("th", title, scope="col") for title in head))
    return h("table", h("thead", titles), h("tbody", *rows), class_="numbers")


def _panel(heading: str, text: str, chart: Html) -> Html | None:
    return h("div", h("h3", heading), h("p", text), chart, class_="panel") if chart else None


def _and(texts: Sequence[str]) -> str:
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def _ended(watched: Watched, stop_when: str) -> Met | None:
    """The condition that the last look meets; none if what the files say of it is damaged."""
    try:
        return met(parse(stop_when), watched.looks[-1].numbers, Base(watched.base.numbers, watched.spread))
    except ValueError:
        return None
