"""One self-contained page that shows what a run did: numbers, curves, pictures before and after, what was run.

The page is a single file: pictures are inlined, charts are SVG, and nothing is ever fetched. Whatever is missing (no
comparison, no pictures, a run that was just started) is left out.
"""

from __future__ import annotations

import math
import shlex
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align3d.charts import MINUS, interval, interval_chart, number, shorten
from align3d.files import replacing
from align3d.gallery import Exhibit, before_after, film_section, history, section
from align3d.log import TERM, duration
from align3d.page import Html, document, h, join
from align3d.runs import Run, is_number
from align3d.training_charts import curves, reward_names, times
from align3d.watched import Watched, verdict
from align3d.watched import section as watched_section

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from align3d.evaluate import Change, Comparison, Evaluation

STYLE = Path(__file__).parent / "assets" / "report" / "style.css"
BETWEEN = "between the seeds of a prompt"  # explains diversity
SAME = "The same prompts and the same noise, before and after training."
ONE = "The scene as it was to begin with, and as it is now."


def write_report(
    path: str | Path,
    run: str | Path | None = None,
    *,
    title: str | None = None,
    comparisons: Mapping[str, Comparison] | None = None,
    exhibits: Sequence[Exhibit] = (),
    turntables: Sequence[Exhibit] = (),
    trained_on: str | None = None,
    pool: str = "prompts",
    command: str | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Writes the page; an older one is replaced.

    Args:
        path: The file, or a folder to put report.html into.
        run: A run's folder with config.json, metrics.jsonl, samples/; None takes the folder of the page.
        title: Heading; None makes one from the configuration.
        comparisons: Name -> a tuned model against its base; the first gives the headline.
        exhibits: Pictures before and after; none takes the first and the last step of the run's samples.
        turntables: Animations before and after; none takes the run's, too.
        trained_on: Which of the compared rewards the model was trained on; None takes the configuration's.
        pool: What the compared prompts are, as in "24 held-out prompts".
        command: What makes this run again; None takes the configuration's.
        notes: Paragraphs below the headline.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If `run` is given and is no folder.
        ValueError: If a picture cannot be read or the file cannot be written.
    """
    path = Path(path)
    path = path / "report.html" if path.is_dir() or not path.suffix else path
    if run is not None and not Path(run).is_dir():
        raise FileNotFoundError(f"no run folder {run}")
    told = Run.read(Path(run) if run is not None else path.parent)
    comparisons = comparisons or {}
    trained_on = trained_on or told.part("reward")
    title = title or _title(told)
    pictures = exhibits or before_after(told.samples, ".png")
    watched, same = Watched.of(told), ONE if told.part("prior") else SAME
    body = [
        h("p", "align3d run report", class_="kicker"),
        h("h1", title),
        *_headline(told, comparisons, trained_on, pool),
        verdict(watched, _stop_when(told)) if watched else None,
        *[h("p", note) for note in notes],
        _tiles(told, comparisons, trained_on),
        section("Before and after" if len(told.samples) != 1 else "Before", pictures, same),
        section("All around", turntables or before_after(told.samples, ".webp"), ""),
        film_section(told.film),
        "" if exhibits else history(told.samples),
        _numbers(comparisons, trained_on, pool),
        watched_section(watched) if watched else None,
        curves(told),
        times(told),
        _settings(told, command),
    ]
    style = STYLE.read_text(encoding="utf-8")
    page = document(title, style, h("main", *body), _footer(told))
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def exhibits_of(evaluations: Mapping[str, Evaluation], most: int = 12, view: int = 0) -> list[Exhibit]:
    """Pictures of the same prompts and seed from several evaluations, spread over the prompts.

    Args:
        evaluations: What each is called -> evaluation with pictures, all of the same prompts and seeds.
        most: Number of prompts shown.
        view: Which camera.

    Raises:
        ValueError: If pictures were not kept, or the prompts differ.
    """
    first = next(iter(evaluations.values()))
    for name, evaluation in evaluations.items():
        if evaluation.pictures is None:
            raise ValueError(f"evaluation {name!r} has no pictures; evaluate with keep=True")
        if (evaluation.prompts, evaluation.seeds) != (first.prompts, first.seeds):
            raise ValueError(f"evaluation {name!r} is of other prompts or seeds; evaluate all with the same ones")
    shown = range(0, len(first.prompts), -(-len(first.prompts) // most))
    return [
        Exhibit(first.prompts[i], {name: e.pictures[i, 0, view] for name, e in evaluations.items()}, first.seeds[0])
        for i in shown
    ]


def _stop_when(run: Run) -> str:
    """The condition that ends the run, if the configuration has one."""
    options = run.settings.get("watch")
    return str(options.get("stop_when", "")) if isinstance(options, dict) and not options.get("go_on") else ""


def _title(run: Run) -> str:
    if run.part("prior"):
        prompt = shorten(str(run.settings.get("prompt", "")), 80)
        method = f" by {run.part('method')}" if run.part("method") else ""
        return f"{prompt}: a scene distilled from the prior {run.part('prior')}{method}"
    model, method, reward = run.part("model"), run.part("method"), _sum(run) or run.part("reward")
    if model and reward:
        return f"Model {model}, aligned with {reward}" + (f" by {method}" if method else "")
    return "A run of align3d"


def _sum(run: Run) -> str:
    """A reward that is a sum, as one would write it; nothing of others, or of a damaged configuration."""
    if not all(is_number(term, "weight") for term in run.terms.values()):
        return ""
    parts = [(term["weight"], name) for name, term in run.terms.items()]
    written = [f"{MINUS if w < 0 else '+'} {'' if abs(w) == 1 else f'{abs(w):g} '}{name}" for w, name in parts]
    return " ".join(written).removeprefix("+ ")


def _main(comparison: Comparison, trained_on: str | None) -> Change:
    """The change that the headline is about."""
    return next((c for c in comparison.changes if c.name == trained_on), comparison.changes[0])


def _headline(run: Run, comparisons: Mapping[str, Comparison], trained_on: str | None, pool: str) -> list[Html]:
    """What happened, in a sentence or three, with numbers."""
    if not comparisons:
        lead, *more = [text for text in (_beside(run), _progress(run)) if text]
        return [h("p", lead, class_="lead"), *(h("p", text) for text in more)]
    comparison = next(iter(comparisons.values()))
    main = _main(comparison, trained_on)
    verb = "rose" if main.change > 0 else "fell" if main.change < 0 else "went"
    seeds = f"{comparison.seeds} seed{'s' * (comparison.seeds != 1)} each"
    chance = "" if main.certain or main.low is None else ", which may be chance"
    lead = h(
        *("p", h("strong", main.name), f" {verb} from {number(main.base)} to ", h("strong", number(main.tuned))),
        f" on {comparison.prompts} {pool}, {seeds} ({_spell(main)}){chance}.",
        class_="lead",
    )
    doubt = {c.name: "" if c.certain or c.low is None else " (no clear change)" for c in comparison.changes}
    others = [f"{c.name} {number(c.base)} → {number(c.tuned)}{doubt[c.name]}" for c in comparison.changes if c != main]
    what = "Not trained on" if main.name == trained_on else "Also measured"
    more = f"{what}: {', '.join(others)}. " if others else ""
    if comparison.diversity is not None:
        d = comparison.diversity
        more += f"Diversity between seeds: {number(d.base)} before, {number(d.tuned)} after."
    return [lead, h("p", more)] if more else [lead]


def _progress(run: Run) -> Html:
    """The headline of a run that nobody compared with its base."""
    num, went = len(run.metrics), []
    terms = [name for name in (run.metrics[-1] if run.metrics else ()) if name.startswith(TERM)]
    for name in terms or ["reward"]:  # the terms of a sum may be normalised, by what they themselves have been
        values = [value for value in run.column(name) if math.isfinite(value)]
        if len(values) > 1:
            tenth = max(1, len(values) // 10)
            first, last = statistics.fmean(values[:tenth]), statistics.fmean(values[-tenth:])
            what = f"{name.removeprefix(TERM)} " if terms else ""
            went.append(join(f"{what}from {number(first)} to ", h("strong", number(last))))
    if not went:
        return join(f"{num} update{'s' * (num != 1)}.")
    listed = [part for one in went for part in (", ", one)][1:]
    whose = "noise candidates" if run.part("prior") else "training samples"
    text = f"Over {num} updates, the mean reward of the {whose} went "
    return join(text, *listed, " (first and last tenth of the updates).")


def _beside(run: Run) -> Html | None:
    """What became of the samples that a run draws of the same prompts and seeds, in numbers."""
    if len(run.samples) < 2:
        return None
    first, *_, last = run.samples.values()
    pairs = {name: (first.rewards.get(name), last.rewards.get(name)) for name in reward_names([first, last])}
    pairs["diversity between seeds"] = (first.diversity, last.diversity)
    known = {name: (a, b) for name, (a, b) in pairs.items() if a is not None and b is not None}
    if not known:
        return None
    changes = [join(f"{name} {number(a)} → ", h("strong", number(b))) for name, (a, b) in known.items()]
    what = f"{len(last.prompts)} prompts of the training with {len(last.seeds)} seeds each, the same before and after: "
    if run.part("prior"):
        what = "The scene, at the start and at the end: "
    return join(what, *[x for c in changes for x in (", ", c)][1:], ".")


def _spell(c: Change) -> str:
    parts = [number(c.change, sign=True), f"95 % interval {interval(c)}" if c.low is not None else ""]
    parts.append(f"{abs(c.z):.1f} standard errors" if c.z is not None else "")
    return ", ".join(part for part in parts if part)


def _tiles(run: Run, comparisons: Mapping[str, Comparison], trained_on: str | None) -> Html | None:
    """The few numbers that everyone wants."""
    tiles: list[tuple[str, str, str]] = []
    if comparisons:
        comparison = next(iter(comparisons.values()))
        main = _main(comparison, trained_on)
        rest = [c for c in comparison.changes if c is not main]
        for c in [main, *rest[:2]]:
            tiles.append((number(c.change, sign=True), f"{c.name}{' (trained on)' * (c.name == trained_on)}", _tone(c)))
    seconds = [value for value in run.column("seconds") if math.isfinite(value)]
    if seconds:
        tiles.append((duration(sum(seconds)), f"for {len(run.metrics)} updates", ""))
        tiles.append((f"{statistics.median(seconds):.2g} s", "an update, median", ""))
    memory = [value for value in run.column("memory_mib") if math.isfinite(value)]
    if memory:
        tiles.append((f"{max(memory):.0f} MiB", "peak memory", ""))
    if not tiles:
        return None
    items = [h("li", h("strong", value, class_=tone or None), h("span", text)) for value, text, tone in tiles]
    return h("ul", *items, class_="tiles")


def _tone(c: Change) -> str:
    return ("up" if c.change > 0 else "down") if c.certain else "unsure"


def _numbers(comparisons: Mapping[str, Comparison], trained_on: str | None, pool: str) -> Html | None:
    """Tables and interval charts against the base."""
    if not comparisons:
        return None
    parts = [h("h2", "Against the base model")]
    for name, comparison in comparisons.items():
        text = f"{comparison.prompts} {pool}, {comparison.seeds} seeds each, the same noise for both models; intervals "
        text += "and errors over prompts (95 %, bootstrap)."
        if comparison.moved is not None:
            text += f" Pixels moved by {number(comparison.moved)} (root mean square, 0 to 1)."
        chart = Html(interval_chart(comparison.changes))
        parts += [
            h("h3", name) if len(comparisons) > 1 else None,
            h("p", text, class_="note"),
            h("div", h("div", _table(comparison, trained_on), class_="panel"), class_="panels"),
            h("div", h("div", chart, class_="panel"), class_="panels", style="margin-top:16px") if chart else None,
        ]
    return join(*parts)


def _table(comparison: Comparison, trained_on: str | None) -> Html:
    heads = ["", "base", "tuned", "change", "z", "95 % interval", "went up"]
    rows = []
    for c in (*comparison.changes, *([comparison.diversity] if comparison.diversity else [])):
        kind = BETWEEN if c is comparison.diversity else "trained on" if c.name == trained_on else None
        z = "n/a" if c.z is None else f"{c.z:+.1f}".replace("-", MINUS)
        wins = "n/a" if c.wins is None else f"{100 * c.wins:.0f} %"
        values = [number(c.base), number(c.tuned), number(c.change, sign=True), z, interval(c) or "n/a", wins]
        tones = {"95 % interval": "range", "went up": "range"} | ({} if kind == BETWEEN else {"change": _tone(c)})
        cells = [
            h("td", h("span", value), data_label=label, class_=tones.get(label))
            for label, value in zip(heads[1:], values, strict=True)
        ]
        rows.append(h("tr", h("th", c.name, h("small", kind) if kind else None, scope="row"), *cells))
    head = h("thead", h("tr", *[h("th", text, scope="col") for text in heads]))
    return h("table", head, h("tbody", *rows), class_="numbers")


def _settings(run: Run, command: str | None) -> Html | None:
    """The command and the whole configuration."""
    command = command or _command(run.config.get("command"))
    groups = []
    for name, value in run.settings.items():
        rows = value if isinstance(value, dict) else {name: value}
        summary = h("summary", name, " ", h("small", shorten(str(rows["name"]), 60)) if "name" in rows else None)
        groups.append(h("details", summary, _pairs({k: v for k, v in rows.items() if k != "name"})))
    about = {k: v for k, v in run.config.items() if "config" in run.config and k not in ("config", "command")}
    flat = {}
    for name, value in about.items():
        flat |= value if isinstance(value, dict) else {name: value}
    if flat:
        groups.append(h("details", h("summary", "versions and inputs"), _pairs(flat)))
    if not command and not groups:
        return None
    again = join(h("p", "To run it again:", class_="note"), h("pre", command)) if command else None
    return join(h("h2", "What was run"), again, *groups)


def _pairs(values: Mapping[str, Any]) -> Html:
    rows = [h("tr", h("th", str(k).replace("_", " "), scope="row"), h("td", _value(v))) for k, v in values.items()]
    return h("table", h("tbody", *rows), class_="settings")


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return shorten(", ".join(map(_value, value)), 400)
    return shorten(str(value), 400)


def _command(words: Any) -> str | None:
    """A command line from the words that the program was started with."""
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        return None
    program = Path(words[0]).name
    start = "python -m align3d" if program == "__main__.py" else shlex.quote(program)
    return " ".join([start, *map(shlex.quote, words[1:])])


def _footer(run: Run) -> Html:
    git, versions = run.config.get("git"), run.config.get("versions")
    version = versions.get("align3d") if isinstance(versions, dict) else None
    made = "Made by align3d" + (f" {version}" if version else "") + (f", commit {str(git)[:12]}" if git else "")
    return h("footer", f"{made}. This page loads nothing from the network.")
