"""The page of results that were judged: numbers, differences, categories, every prompt in pictures and in numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from align3d.charts import MINUS, interval, interval_chart, number
from align3d.evaluate import spread
from align3d.evaluation_report import every_prompt, settings, write_page
from align3d.gallery import Exhibit, figure
from align3d.judged.standing import wins
from align3d.log import count
from align3d.page import Html, h, join

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from align3d.evaluate import Change
    from align3d.judged.standing import Mean, Standing
    from align3d.prompt_lists import PromptList

MOST = 48  # prompts in pictures


def write(
    path: Path,
    found: Sequence[Standing],
    pictures: Mapping[str, Sequence[Path]],
    prompts: PromptList,
    about: Mapping[str, Any],
    doubt: str,
) -> Path:
    """Writes the page; an older one is replaced.

    Args:
        path: The file.
        found: The first is what the others are compared with.
        pictures: Method -> a picture of each prompt.
        prompts: Those of the methods.
        about: What was judged, and how.
        doubt: What is to be thought of the intervals; may be nothing.
    """
    first, *others = found
    title = first.name if not others else f"{', '.join(one.name for one in others)} against {first.name}"
    seeds = f", {count(first.seeds, 'seed')} each" if first.seeds > 1 else ""
    paired = " Methods are compared prompt by prompt." if others else ""
    body = [
        h("p", "align3d results", class_="kicker"),
        h("h1", title),
        h(
            "p",
            f"{count(len(prompts.prompts), 'prompt')}{seeds}. All intervals are 95 %, over prompts.{paired}",
            class_="lead",
        ),
        h("p", f"{doubt}.", class_="note") if doubt else None,
        h("div", h("div", _numbers(found), class_="panel"), class_="panels"),
        _differences(first, others),
        _categories(found, prompts),
        _pictures(found, pictures, prompts),
        every_prompt(found, prompts.prompts),
        settings(about),
    ]
    return write_page(path, title, body)


def _numbers(found: Sequence[Standing]) -> Html:
    """One row per method, one column per reward."""
    labels = list(found[0].means)
    rows = [h("tr", h("th", one.name, scope="row"), *(_cell(one.means[x], x) for x in labels)) for one in found]
    return _table(["", *labels], rows)


def _table(heads: Sequence[str], rows: Sequence[Html]) -> Html:
    head = h("thead", h("tr", *[h("th", text, scope="col") for text in heads]))
    return h("table", head, h("tbody", *rows), class_="numbers")


def _cell(mean: Mean, label: str) -> Html:
    value, _, span = mean.text.replace("-", MINUS).partition(" (")
    return h("td", h("span", value, h("small", span.rstrip(")")) if span else None), data_label=label)


def _tone(c: Change) -> str:
    return "unsure" if not c.certain else "up" if c.change > 0 else "down"


def _differences(first: Standing, others: Sequence[Standing]) -> Html | None:
    """Each method against the first: numbers, and a chart."""
    panels = []
    for one in others:
        rows = []
        for c in one.changes:
            span = h("span", number(c.change, sign=True), h("small", interval(c)))
            cells = [h("td", number(c.base), data_label=first.name), h("td", number(c.tuned), data_label=one.name)]
            cells += [h("td", span, data_label="difference", class_=_tone(c)), h("td", wins(c), data_label="better")]
            rows.append(h("tr", h("th", c.name, scope="row"), *cells))
        heads = ["", first.name, one.name, "difference", "better"]
        table, chart = _table(heads, rows), Html(interval_chart(one.changes))
        panels.append(h("div", h("h3", f"{one.name} against {first.name}"), table, chart or None, class_="panel"))
    note = h("p", "better: the share of prompts of which the method has the higher number, ties half.", class_="note")
    return join(h("h2", "Differences"), h("div", *panels, class_="panels"), note) if panels else None


def _categories(found: Sequence[Standing], prompts: PromptList) -> Html | None:
    """Each reward by category."""
    if not found[0].categories:
        return None
    folds = []
    for label in found[0].means:
        rows = []
        for name in found[0].categories:
            tones = [None, *(next(_tone(c) for c in o.category_changes[name] if c.name == label) for o in found[1:])]
            cells = [
                h(
                    "td",
                    h("span", one.categories[name][label].text.replace("-", MINUS)),
                    data_label=one.name,
                    class_=tone,
                )
                for one, tone in zip(found, tones, strict=True)
            ]
            num = h("small", count((prompts.categories or ()).count(name), "prompt"))
            rows.append(h("tr", h("th", name or "none", num, scope="row"), *cells))
        folds.append(h("details", h("summary", label), _table(["", *(one.name for one in found)], rows)))
    return join(h("h2", "Categories"), *folds)


def _pictures(found: Sequence[Standing], pictures: Mapping[str, Sequence[Path]], prompts: PromptList) -> Html:
    """The same prompt by every method."""
    chosen = spread(len(prompts.prompts), MOST)
    exhibits = [Exhibit(prompts.prompts[i], {one.name: pictures[one.name][i] for one in found}) for i in chosen]
    shown = "" if len(chosen) == len(prompts.prompts) else f"{len(chosen)} of the prompts, spread over the list. "
    text = shown + "Of several views, four are shown; of several seeds, the first."
    many = "exhibits many" if len(found) > 3 else "exhibits"
    return join(h("h2", "Results"), h("p", text, class_="note"), h("div", *map(figure, exhibits), class_=many))
