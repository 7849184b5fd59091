"""Pictures in the report: the same prompt and seed side by side, before and after, and step by step along a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from align3d.page import Html, film, h, image, join

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from align3d.page import Picture
    from align3d.runs import Filmed, Samples

MOST_STEPS = 6  # of a run, shown with pictures between the first and the last


@dataclass(frozen=True)
class Exhibit:
    """The same prompt and seed, seen through several models."""

    prompt: str
    pictures: Mapping[str, Picture]  # what each is called ("before", "after") -> picture, animation or file
    seed: int | None = None


def section(heading: str, exhibits: Sequence[Exhibit], text: str) -> Html | None:
    """Exhibits under a heading; None if there are none."""
    if not exhibits:
        return None
    figures = [figure(exhibit) for exhibit in exhibits]
    return join(h("h2", heading), h("p", text, class_="note") if text else None, h("div", *figures, class_="exhibits"))


def figure(exhibit: Exhibit) -> Html:
    """Pictures side by side, each with its name on it, and the prompt below."""
    cells = []
    for i, (name, picture) in enumerate(exhibit.pictures.items()):
        last = i == 1 and len(exhibit.pictures) == 2  # of before and after
        alt = f"{exhibit.prompt or 'samples'}, {name}"
        cells.append(h("div", image(picture, alt), h("b", name), class_="cell last" if last else "cell"))
    seed = h("small", f"seed {exhibit.seed}") if exhibit.seed is not None else None
    caption = h("figcaption", exhibit.prompt, " ", seed) if exhibit.prompt else None
    return h("figure", h("div", *cells), caption)


def before_after(samples: Mapping[int, Samples], suffix: str) -> list[Exhibit]:
    """What a run drew of single prompts, at its first and its last step.

    Args:
        samples: Updates done -> what was drawn then.
        suffix: ".png" for pictures, ".webp" for turntables.
    """
    steps = _ends(samples)
    shown = []
    for i, prompt in enumerate(samples[steps[-1]].prompts if steps else ()):
        files = {_called(step): samples[step].picture(f"{i:02}{suffix}") for step in steps}
        found = {name: file for name, file in files.items() if file is not None}
        if found:
            shown.append(Exhibit(prompt, found, next(iter(samples[steps[-1]].seeds), None)))
    return shown


def film_section(filmed: Filmed | None) -> Html | None:
    """The film of how a scene came to be; None if there is none."""
    if filmed is None:
        return None
    shown = film(filmed.path, "the scene from the first update to the last", filmed.last)
    text = h("p", "From the first update to the last, while the camera goes round.", class_="note")
    return join(h("h2", "How it came to be"), text, h("div", h("figure", shown, class_="film"), class_="exhibits"))


def history(samples: Mapping[int, Samples]) -> Html | None:
    """Pictures of several prompts at once: first and last step side by side, the steps between folded away.

    All is folded away where the run drew single prompts too, which say more.
    """
    sheets = {step: _sheets(drawn) for step, drawn in samples.items() if _sheets(drawn)}
    if not sheets:
        return None
    ends = _ends(sheets)
    inner = sorted(sheets)[1:-1]
    inner = inner[:: max(1, -(-len(inner) // MOST_STEPS))]
    rows = []
    for file in sheets[ends[-1]]:
        same = {step: next((p for p in sheets[step] if p.name == file.name), None) for step in ends}
        found = {_called(step): p for step, p in same.items() if p is not None}
        name = "" if file.stem == "sheet" else file.stem.replace("-", " ").replace("_", " ")
        rows.append(figure(Exhibit(name, found)))
    between = [figure(Exhibit("", {_called(step): sheets[step][0]})) for step in inner]
    if any(drawn.prompts for drawn in samples.values()):
        shown = h("div", *rows, *between, class_="exhibits wide")
        return h("details", h("summary", "All samples, with every seed and the steps between"), shown)
    fold = h("details", h("summary", "Steps between"), h("div", *between, class_="exhibits wide"))
    note = h("p", "The same prompts and the same noise at every step.", class_="note")
    shown = h("div", *rows, class_="exhibits wide")
    return join(h("h2", "Samples along the way"), note, shown, fold if between else None)


def _ends(samples: Mapping[int, object]) -> list[int]:
    """The first and the last step; one if there is but one."""
    return sorted({min(samples), max(samples)}) if samples else []


def _called(step: int) -> str:
    return f"after {step} update{'s' * (step != 1)}" if step else "before"


def _sheets(drawn: Samples) -> list[Path]:
    """Its pictures that are not of a single prompt."""
    single = {f"{i:02}" for i in range(len(drawn.prompts))}
    return [path for path in drawn.pictures if path.stem not in single]
