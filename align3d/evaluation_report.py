"""Pages of `evaluate` and `compare`: numbers, reward against FID, every prompt, the same samples of every model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from align3d.charts import MINUS, curves_chart, interval_chart
from align3d.evaluate import between, number
from align3d.files import replacing
from align3d.gallery import Exhibit, figure
from align3d.log import count
from align3d.matched import Curve, Point
from align3d.page import Html, document, h, join
from align3d.report import STYLE, exhibits_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from align3d.evaluate import Evaluation
    from align3d.matched import Difference, Matched
    from align3d.results import Result

MOST = 12  # prompts in pictures
WORDS = {"fid": "FID", "seconds": "seconds of training", "evaluations": "evaluations of the network"}
READ = (
    "FID: distance to samples that the base model makes of other seeds, in the features of a network. The base's own "
    "is the floor, what no model can be told from. Lower is closer to the base, not better as such: a model that has "
    "learnt something is away from it. Diversity: how far apart the samples of one prompt are, on average; 0 is all "
    "the same."
)
EQUAL = (
    "Best {of} on a run's path, from the base through its checkpoints, with {by} at most the level: mean over the runs "
    "of a group, 95 % intervals over their training seeds and over prompts. Unspent: runs that never reach the level."
)


def write_evaluation(
    path: Path,
    results: Sequence[Result],
    evaluations: Mapping[str, Evaluation],
    trained: Mapping[str, str | None],
    about: Mapping[str, Any],
    paths: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Writes the page of an evaluation; an older one is replaced.

    Args:
        path: The file.
        results: The base first.
        evaluations: Model -> its samples with pictures, the base first.
        trained: Tuned model -> the reward that it was trained on, as far as known.
        about: What was measured, as evaluation.json has it.
        paths: Run -> those of the tuned models that are its checkpoints, in the order of training; a model that is in
            none is a run of its own.
    """
    base, *tuned = results
    title = f"Model {_model(about)}: the base" + (f" and {count(len(tuned), 'tuned model')}" if tuned else "")
    seen = next(iter(evaluations.values()))
    body = [
        h("p", "align3d evaluation", class_="kicker"),
        h("h1", title),
        h("p", f"{_protocol(seen, about)} All intervals are 95 %, over prompts.", class_="lead"),
        h("div", h("div", _numbers(results, trained), class_="panel"), class_="panels"),
        h("p", READ, class_="note") if base.fid is not None else None,
        _scatter(results, paths or {}),
        _changes(tuned),
        _pictures(evaluations),
        every_prompt(results, seen.prompts),
        settings(about),
    ]
    return write_page(path, title, body)


def write_comparison(
    path: Path,
    results: Sequence[Result],
    evaluations: Mapping[str, Evaluation],
    curves: Sequence[Curve],
    tables: Sequence[Matched],
    trained: str | None,
    about: Mapping[str, Any],
) -> Path:
    """Writes the page of a comparison along runs; an older one is replaced.

    Args:
        path: The file.
        results: The base first, then each checkpoint.
        evaluations: What is shown in pictures: model -> its samples, the base first.
        curves: The runs.
        tables: Rewards at equal FID, the trained one first.
        trained: The reward that all runs were trained on, if known.
        about: What was measured.
    """
    groups = dict.fromkeys(curve.group for curve in curves)
    title = f"Model {_model(about)}: {', '.join(groups)}" if len(groups) < 5 else f"{len(groups)} groups of runs"
    seen = next(iter(evaluations.values()))
    runs = f"{count(len(curves), 'run')} in {count(len(groups), 'group')}" + (
        f", trained on {trained}" if trained else ""
    )
    body = [
        h("p", "align3d comparison", class_="kicker"),
        h("h1", title),
        h("p", f"{runs}. {_protocol(seen, about)}", class_="lead"),
        *(_matched(table, curves, first=i == 0) for i, table in enumerate(tables)),
        h("p", READ, class_="note") if results[0].fid is not None else None,
        _pictures(evaluations),
        h("h2", "Every checkpoint"),
        h("details", h("summary", count(len(results) - 1, "checkpoint"), " and the base"), _numbers(results, {})),
        settings(about),
    ]
    return write_page(path, title, body)


def write_page(path: Path, title: str, body: Sequence[Html | None]) -> Path:
    """Writes a page with the style of reports; an older one is replaced."""
    foot = h("footer", "Made by align3d. This page loads nothing from the network.")
    page = document(title, STYLE.read_text(encoding="utf-8"), h("main", *body), foot)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _model(about: Mapping[str, Any]) -> str:
    return str(about.get("model", {}).get("name", ""))


def _protocol(seen: Evaluation, about: Mapping[str, Any]) -> str:
    grid = f"{count(len(seen.prompts), 'prompt')}, {count(len(seen.seeds), 'seed')} each, the same noise for all models"
    cameras = f"{count(int(about.get('views', 0)), 'view')} of {about.get('size')} pixels"
    return f"{grid}, {cameras}."


def _numbers(results: Sequence[Result], trained: Mapping[str, str | None]) -> Html:
    """One row per model, one column per number."""
    names = list(results[0].numbers)
    heads = ["", *(WORDS.get(name, name) for name in names)]
    rows = []
    for result in results:
        changes = {c.name: c for c in result.all_changes()}
        cells = []
        for name in names:
            c = changes.get(name)
            tone = "unsure" if c is not None and not c.certain else None
            if c is not None and c.certain and name != "diversity":
                tone = "up" if c.change > 0 else "down"
            more = number(c.change, sign=True) if c is not None else ""
            if name == "fid" and result.fid is not None:
                more = between(result.fid.low, result.fid.high)
            value = h("span", number(result.numbers.get(name)), h("small", more) if more else None)
            cells.append(h("td", value, data_label=WORDS.get(name, name), class_=tone))
        on = trained.get(result.name)
        kind = h("small", f"trained on {on}") if on else None
        rows.append(h("tr", h("th", result.name, kind, scope="row"), *cells))
    head = h("thead", h("tr", *[h("th", text, scope="col") for text in heads]))
    return h("table", head, h("tbody", *rows), class_="numbers")


def _scatter(results: Sequence[Result], paths: Mapping[str, Sequence[str]]) -> Html | None:
    """Each reward against FID: a line from the base through the checkpoints of every run."""
    base, *tuned = results
    if base.fid is None or not tuned:
        return None
    numbers = {result.name: result.numbers for result in results}
    single = {name: [name] for name in numbers if name != base.name and not any(name in p for p in paths.values())}
    curves = [
        Curve(run, 0, tuple(Point(i, 0.0, 0.0, numbers[name]) for i, name in enumerate((base.name, *names))))
        for run, names in {**paths, **single}.items()
    ]
    charts = [(name, curves_chart(curves, name, "fid")) for name in base.rewards]
    panels = [h("div", chart, class_="panel") for _, chart in charts if chart]
    return join(h("h2", "Reward against FID"), h("div", *panels, class_="panels")) if panels else None


def _changes(tuned: Sequence[Result]) -> Html | None:
    """Each tuned model's changes with their intervals."""
    panels = []
    for result in tuned:
        chart = Html(interval_chart(result.all_changes()))
        d = result.fid
        above = None
        if d is not None:
            span = "" if d.above_low is None else f" ({between(d.above_low, d.above_high, True)})"
            above = h("p", f"FID above the floor: {number(d.above, sign=True)}{span}")
        if chart:
            panels.append(h("div", h("h3", result.name), above, chart, class_="panel"))
    return join(h("h2", "Changes against the base"), h("div", *panels, class_="panels")) if panels else None


def _matched(table: Matched, curves: Sequence[Curve], first: bool) -> Html:
    """A reward at equal FID: table, differences, and the runs' paths."""
    paths = [
        curves_chart(curves, table.of, by, table.levels[-1] if by == table.by else None)
        for by in ("fid", "seconds", "evaluations")
    ]
    panels = [
        h("div", h("h3", f"{table.of} against {WORDS[by]}"), chart, class_="panel")
        for by, chart in zip(WORDS, paths, strict=True)
        if chart
    ]
    by, unspent = WORDS.get(table.by, table.by), any(row.short for row in table.rows)
    rows = []
    for row in table.rows:
        values = {
            f"{by} at most": number(row.level),
            table.of: number(row.value),
            "95 % over runs": between(row.low, row.high) or "n/a",
            "over prompts": between(*(row.prompts or (None, None))) or "n/a",
            "runs": str(row.seeds),
        }
        if unspent:
            values["unspent"] = str(row.short)
        cells = [
            h("td", h("span", value), data_label=label, class_="range" if "over" in label else None)
            for label, value in values.items()
        ]
        rows.append(h("tr", h("th", row.group, scope="row"), *cells))
    heads = ["", f"{by} at most", table.of, "95 % over runs", "over prompts", "runs"]
    heads += ["unspent"] if unspent else []
    level = h(
        "table", h("thead", h("tr", *[h("th", t, scope="col") for t in heads])), h("tbody", *rows), class_="numbers"
    )
    parts = [h("p", EQUAL.format(of=table.of, by=by), class_="note", style="margin-top:16px")]
    parts += [h("div", h("div", level, class_="panel"), class_="panels")]
    if table.differences:
        last = [_difference(d, by) for d in table.differences if d.level == table.levels[-1]]
        rest = [_difference(d, by) for d in table.differences if d.level != table.levels[-1]]
        parts.append(h("ul", *last, class_="note"))
        if rest:
            parts.append(h("details", h("summary", "Differences at the other levels"), h("ul", *rest, class_="note")))
    inner = join(h("div", *panels, class_="panels"), *parts)
    heading = f"{table.of} at equal {by}"
    return (
        join(h("h2", heading), inner)
        if first
        else h("details", h("summary", heading), h("div", inner, style="padding:14px 0"))
    )


def _difference(d: Difference, by: str) -> Html:
    """Two groups at a level, in words."""
    span = "" if d.low is None else f", 95 % {between(d.low, d.high, True)} over runs"
    span += "" if d.prompts is None else f", {between(*d.prompts, True)} over prompts"
    sure = "" if d.low is None else " (sure)" if d.certain else " (not sure)"
    what = f"{by} {number(d.level)}: {d.group} {MINUS} {d.against}"
    return h("li", f"{what} = {number(d.change, sign=True)}{span}{sure}")


def _pictures(evaluations: Mapping[str, Evaluation]) -> Html | None:
    """The same prompt and seed by every model."""
    if any(seen.pictures is None for seen in evaluations.values()):
        return None
    exhibits: list[Exhibit] = exhibits_of(evaluations, MOST)
    many = "exhibits many" if len(evaluations) > 3 else "exhibits"
    note = h("p", "The same prompt, seed and noise for every model.", class_="note")
    return join(h("h2", "Samples"), note, h("div", *map(figure, exhibits), class_=many))


def every_prompt(results: Sequence[Any], prompts: Sequence[str]) -> Html:
    """Every prompt's numbers, folded away; of what has a name and, by reward, numbers of all prompts."""
    folds = []
    for name in results[0].prompts:
        head = h("thead", h("tr", h("th", "", scope="col"), *[h("th", r.name, scope="col") for r in results]))
        rows = []
        for i, prompt in enumerate(prompts):
            cells = [h("td", h("span", number(r.prompts[name][i])), data_label=r.name) for r in results]
            rows.append(h("tr", h("th", prompt, scope="row"), *cells))
        folds.append(h("details", h("summary", name), h("table", head, h("tbody", *rows), class_="numbers")))
    return join(h("h2", "Every prompt"), *folds)


def settings(about: Mapping[str, Any]) -> Html:
    """All that was measured and how, folded away."""
    from align3d.checkpoint import flat

    rows = [h("tr", h("th", key, scope="row"), h("td", str(value))) for key, value in flat(dict(about)).items()]
    table = h("table", h("tbody", *rows), class_="settings")
    return join(h("h2", "What was measured"), h("details", h("summary", "settings"), table))
