"""The charts of a run's report: what its metrics were along the training, and where the time went."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from typing import TYPE_CHECKING

from align3d.charts import line_chart
from align3d.log import TERM, WATCHED
from align3d.page import Html, h, join
from align3d.runs import is_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from align3d.runs import Run, Samples

PARTS = "seconds_"  # metrics that begin so are parts of an update's time: seconds_sample, seconds_reward, ...
CURVES = {  # metrics with a chart of their own: title, and what it says
    "reward": ("Reward", "of the samples trained on, each update with other prompts; the band is their spread"),
    "drift": ("Drift", "how far predictions have moved from the base model's, relative to their size"),
    "loss": ("Loss", "what the optimiser sees; it need not fall when the target moves"),
    "grad_norm": ("Gradient", "its norm before clipping"),
}
PHASES = {"sample": "sampling", "reward": "reward and its gradient"}  # parts of the time that need more words
BETWEEN_UPDATES = ("seconds_watch",)  # and no part of them
UNCHARTED = ("step", "seconds", "reward_std", "memory_mib", "lr", "beta")  # shown elsewhere, or no result


def curves(run: Run) -> Html | None:
    """Charts of the metrics and of the samples: those that everyone looks at, the rest folded away."""
    steps = [float(row["step"]) for row in run.metrics]
    apart = (PARTS, WATCHED)  # have sections of their own
    names = {name for row in run.metrics for name in row if name not in UNCHARTED and not name.startswith(apart)}
    panels: dict[str, Html] = {}
    for name in [*CURVES, *sorted(names - set(CURVES))]:
        values = run.column(name)
        if len({v for v in values if math.isfinite(v)}) < 2:
            continue
        heading, text = CURVES.get(name, (name.replace("_", " "), ""))
        if name == "reward" and run.part("prior"):
            heading, text = "Candidates", "mean reward of an update's noise candidates; the band is their spread"
        if name == "reward" and _normalised(run):
            text = "of a sum that is normalised by what it has been so far, so that 0 moves along: see its terms"
        if name.startswith(TERM):
            heading, text = name.removeprefix(TERM), "a term of the reward, as it is; mean of all that was scored"
        chart = line_chart(steps, values, heading, run.column("reward_std") if name == "reward" else None)
        panels[name] = _panel(heading, text, chart)
    fixed = _fixed(run)
    terms = [name for name in panels if name.startswith(TERM)]
    first = ["reward", *terms, *(name for name in CURVES if name != "reward")]
    shown = [panel for name in first for panel in (panels.get(name), *fixed.get(name, [])) if panel]
    more = [panel for name, panel in panels.items() if name not in first]
    if not shown and not more:
        return None
    fold = h("details", h("summary", "More curves"), h("div", *more, class_="panels")) if more else None
    return join(h("h2", "Training"), h("div", *shown, class_="panels") if shown else None, fold)


def _normalised(run: Run) -> bool:
    """Whether the reward is a sum with a term that is measured from its own past."""
    return any(term.get("normalise") == "running" for term in run.terms.values())


def _fixed(run: Run) -> dict[str, list[Html]]:
    """Charts of the samples with the same prompts and seeds, beside the base model's, by the metric they go with."""
    drawn, scene = list(run.samples.values()), bool(run.part("prior"))
    same = "" if scene else ", same samples"
    rewards = {f"{name}{same}": [s.rewards.get(name) for s in drawn] for name in reward_names(drawn)}
    groups = {
        "reward": (rewards, "of four views of the scene" if scene else "of the same prompts and seeds at every step"),
        "drift": ({"Diversity": [s.diversity for s in drawn]}, "how much the seeds of a prompt differ"),
    }
    dashed = "; dashed: to begin with" if scene else "; dashed: the base model"
    found: dict[str, list[Html]] = defaultdict(list)
    for beside, (columns, text) in groups.items():
        for heading, values in columns.items():
            y = [math.nan if value is None else value for value in values]
            base = y[0] if 0 in run.samples and math.isfinite(y[0]) else None
            chart = line_chart([float(step) for step in run.samples], y, heading, smooth=False, base=base)
            if chart:
                found[beside].append(_panel(heading, text + dashed * (base is not None), chart))
    return found


def reward_names(drawn: Sequence[Samples]) -> list[str]:
    """Names of the rewards of a run's samples, in order of appearance."""
    return list(dict.fromkeys(name for samples in drawn for name in samples.rewards))


def _panel(heading: str, text: str, chart: str) -> Html:
    return h("div", h("h3", heading), h("p", text) if text else None, Html(chart), class_="panel")


def times(run: Run) -> Html | None:
    """Where an update's time goes: medians over the updates after the first, which has to warm up."""
    parts: dict[str, list[float]] = defaultdict(list)
    for row in run.metrics[1:] or run.metrics:
        for name in row:
            if name.startswith(PARTS) and name not in BETWEEN_UPDATES and is_number(row, name):
                parts[name.removeprefix(PARTS).replace("_", " ")].append(float(row[name]))
    if not parts:
        return None
    medians = {PHASES.get(name, name): statistics.median(values) for name, values in parts.items() if any(values)}
    whole = [float(row["seconds"]) for row in run.metrics[1:] or run.metrics if is_number(row, "seconds")]
    rest = (statistics.median(whole) if whole else 0.0) - sum(medians.values())
    if rest > 0.01 * sum(medians.values()):
        medians["everything else"] = rest
    total = sum(medians.values()) or 1.0
    bars, keys = [], []
    for i, (name, value) in enumerate(medians.items()):
        colour = f"c{min(i, 7)}" if name != "everything else" else "c7"
        bars.append(h("i", class_=colour, style=f"flex:{value / total:.4f}"))
        amount = f"{value:.2g} s, {100 * value / total:.0f} %"
        keys.append(h("li", h("i", class_=colour), name, h("em", amount)))
    bar = h("div", *bars, class_="split", aria_hidden="true")
    panel = h("div", h("p", "medians over the updates"), bar, h("ul", *keys, class_="keys"), class_="panel")
    return join(h("h2", "Time of an update"), h("div", panel, class_="panels"))
