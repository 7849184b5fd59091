"""What benchmarks/methods.py has measured, written down: a verdict that is computed, tables, charts and pictures.

The claim was fixed before the results were seen: CLAIM against each of AGAINST, at the largest FID that every run of
the three reaches. It is sure if the interval over training seeds and that over prompts both leave out 0.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from align3d import sampleset
from align3d.charts import curves_chart
from align3d.evaluate import between, number, spread
from align3d.matched import Curve, Difference, Matched, Point, Row, matched

CLAIM, AGAINST = "nabla", ("refl", "draft")
BESIDE = ("clip-tiny", "dnc", "diversity")
SHOWN = 6  # prompts of a sheet
COLOURS = ["black", "blue", "brown", "cyan", "gray", "green", "orange", "pink", "purple", "red", "white", "yellow"]
PROTOCOL = """Intervals are 95 %: over training seeds (t, paired by seed), and over prompts (jackknife, a tenth of them
left out at a time). A difference is sure if both leave out 0. What is claimed, fixed before, is the difference of nabla
to refl and to draft at one level: the largest FID that every run of the three reaches. A run counts there with the best
place on its path that is no farther from the base. Everything else is shown as it is. FID and `imagenet` use the same
network, so that price and reward are not independent there.

Not tested: more than one learning rate for each method, all chosen on colorfulness; longer runs; and DDPO with as many
samples as it needs.
"""
STYLE = """svg{font:11.5px system-ui,sans-serif;background:#fff}.grid{stroke:#e2e2dd;fill:none}.tick{fill:#5b6169}
.base{stroke:#5b6169;fill:none;stroke-dasharray:5 4;stroke-width:1.4}.run{fill:var(--c);stroke:#fff}
.run path{stroke-width:.7}.run .way{fill:none;stroke:var(--c);stroke-width:1.5;stroke-linejoin:round;opacity:.75}
.c0{--c:#4c78d8}.c1{--c:#2a9d8f}.c2{--c:#e0a93b}.c3{--c:#d2693c}.c4{--c:#9467bd}.c5{--c:#d16d9e}.c6{--c:#6c8a3c}"""


@dataclass(frozen=True)
class Study:
    """The runs that were trained on one reward, as table.json of `align3d compare` has them."""

    reward: str
    table: dict[str, Any]

    @classmethod
    def read(cls, reward: str, folder: Path) -> Study:
        """From a comparison's folder."""
        return cls(reward, json.loads((folder / "table.json").read_text(encoding="utf-8")))

    @cached_property
    def results(self) -> dict[str, dict[str, Any]]:
        """The base and every checkpoint, by name."""
        return {result["name"]: result for result in self.table["results"]}

    def result(self, run: str, step: int) -> dict[str, Any]:
        """A checkpoint of a run."""
        return self.results[f"{run}-{step:06}" if step else "base"]

    @cached_property
    def runs(self) -> dict[str, Curve]:
        """The runs by name; the groups are called as the methods are."""
        names = {(run["group"], run["seed"]): name for name, run in self.table["runs"].items()}
        return {
            (name := names[curve["group"], curve["seed"]]): Curve(
                method_of(name), curve["seed"], tuple(Point(**point) for point in curve["points"])
            )
            for curve in self.table["curves"]
        }

    @cached_property
    def curves(self) -> list[Curve]:
        """All runs."""
        return list(self.runs.values())

    @cached_property
    def blocks(self) -> list[list[Curve]]:
        """The same measured without each block of prompts."""

        def point(name: str, p: Point, g: int) -> Point:
            return Point(p.step, p.seconds, p.evaluations, self.result(name, p.step)["blocks"][g])

        return [
            [Curve(c.group, c.seed, tuple(point(name, p, g) for p in c.points)) for name, c in self.runs.items()]
            for g in range(len(self.results["base"]["blocks"]))
        ]

    @property
    def methods(self) -> list[str]:
        """All methods, in the order of the benchmark."""
        return list(dict.fromkeys(curve.group for curve in self.curves))

    @property
    def floor(self) -> float:
        """The base model's own FID."""
        return self.results["base"]["fid"]["value"]

    def of(self, *methods: str) -> list[Curve]:
        """The runs of some methods."""
        return [curve for curve in self.curves if curve.group in methods]

    def reach(self, by: str = "fid") -> float:
        """The largest distance that every run of the claim gets to."""
        return min(max(curve.column(by)) for curve in self.of(CLAIM, *AGAINST))

    @property
    def levels(self) -> tuple[float, float]:
        """Where runs are compared: halfway, in FID above the floor, and where every run of the claim still is."""
        top = self.reach()
        return self.floor + max(0.0, top - self.floor) / 2, top

    @property
    def moved(self) -> bool:
        """Whether the highest level is above the floor for sure."""
        for name, curve in self.runs.items():
            farthest = max(curve.points, key=lambda p: p["fid"])
            low = self.result(name, farthest.step)["fid"]["above_low"]
            if curve.group in (CLAIM, *AGAINST) and (low is None or low <= 0):
                return False
        return True

    @cached_property
    def compared(self) -> list[str]:
        """The methods of which every run gets to the highest level."""
        return [m for m in self.methods if min(max(c.column("fid")) for c in self.of(m)) >= self.reach()]

    @cached_property
    def matched(self) -> Matched:
        """Those, at both levels, each against the claim's method."""
        kept = [i for i, curve in enumerate(self.curves) if curve.group in self.compared]
        blocks = [[block[i] for i in kept] for block in self.blocks]
        curves = [self.curves[i] for i in kept]
        return matched(curves, self.reward, "fid", self.levels, against=CLAIM, without=blocks)

    def row(self, method: str, level: float) -> Row:
        """A method at a level."""
        return next(row for row in self.matched.rows if row.group == method and row.level == level)

    def difference(self, method: str, level: float) -> Difference:
        """The claim's method less another, at a level."""
        d = next(d for d in self.matched.differences if d.group == method and d.level == level)
        span = (None, None) if d.low is None or d.high is None else (-d.high, -d.low)
        prompts = None if d.prompts is None else (-d.prompts[1], -d.prompts[0])
        return Difference(level, CLAIM, method, d.paired, -d.change, d.error, *span, prompts)


def method_of(run: str) -> str:
    """The method that a run's folder is named after."""
    return re.sub(r"-s\d+$", "", run)


def verdict(study: Study) -> tuple[str, bool]:
    """What the claim comes to for one reward, in words; and whether it holds."""
    at = f"**{study.reward}**: at FID {number(study.levels[1])} (floor {number(study.floor)})"
    if not study.moved:
        return f"{at} the runs have not moved enough to be compared.", False
    top = study.levels[1]
    said = f"{at} {CLAIM} has {number(study.row(CLAIM, top).value)}"
    differences = [study.difference(other, top) for other in AGAINST]
    for d in differences:
        said += f"; {d.against} {number(study.row(d.against, top).value)}, a difference of {number(d.change, True)} ("
        said += f"{span(d.low, d.high)} over seeds, {span(*(d.prompts or (None, None)))} over prompts)"
    ahead = [d.against for d in differences if d.certain and d.change > 0]
    behind = [d.against for d in differences if d.certain and d.change < 0]
    open_ = [d.against for d in differences if not d.certain]
    ends = [f"{CLAIM} is ahead of {'both' if len(ahead) == len(AGAINST) else ahead[0]}"] if ahead else []
    ends += [f"{' and '.join(behind)} {'are' if len(behind) > 1 else 'is'} ahead of {CLAIM}"] if behind else []
    ends += [f"{CLAIM} is not told apart from {' and '.join(open_)}"] if open_ else []
    return f"{said}. **{' and '.join(ends).capitalize()}.** {checks(study)}", len(ahead) == len(AGAINST)


def checks(study: Study) -> str:
    """Whether other ways to compare say the same."""
    low, top = study.levels
    own = study.row(CLAIM, top).low
    highs = [study.row(other, top).high for other in AGAINST]
    apart = own is not None and all(high is not None and own > high for high in highs)
    signs = [study.difference(other, top).change > 0 for other in AGAINST]
    half = [study.difference(other, low).change > 0 for other in AGAINST]
    runs = study.of(CLAIM, *AGAINST)
    moved = matched(runs, study.reward, "moved", [study.reach("moved")], against=CLAIM)
    there = {d.group: d.change < 0 for d in moved.differences}
    return (
        f"Own intervals over seeds apart: {yes(apart)}; same signs halfway: {yes(half == signs)}; same signs at equal "
        f"distance of the pixels: {yes([there.get(other) for other in AGAINST] == signs)}."
    )


def yes(flag: bool) -> str:
    """In words."""
    return "yes" if flag else "no"


def span(low: float | None, high: float | None) -> str:
    """An interval of a difference, in words."""
    return between(low, high, sign=True) or "n/a"


def at_level(study: Study, level: float) -> Iterator[str]:
    """The table of all methods at a level; those that end earlier at the end of their runs, without a comparison."""
    beside = [name for name in BESIDE if name != study.reward]
    heads = ["", study.reward, "95 % over seeds", *beside, "updates", f"{CLAIM} less it", "over seeds", "over prompts"]
    yield from header([*heads, "sure"])
    for method in study.methods:
        if method not in study.compared:
            yield cells([method, f"ends at FID {average(study, method, 'fid')}", *[""] * (len(heads) - 1)])
            continue
        row = study.row(method, level)
        own = between(row.low, row.high) or "n/a"
        line = [method, number(row.value), own, *(number(row.numbers.get(name)) for name in beside)]
        line.append(f"{row.numbers['step']:.0f}")
        if method == CLAIM:
            yield cells([*line, "", "", "", ""])
            continue
        d = study.difference(method, level)
        line += [number(d.change, True), span(d.low, d.high), span(*(d.prompts or (None, None))), yes(d.certain)]
        yield cells(line)


def at_end(study: Study) -> Iterator[str]:
    """The table of all methods at the end of their runs."""
    names = [study.reward, "fid", *(name for name in BESIDE if name != study.reward), "moved", "step", "evaluations"]
    shown = {"fid": "FID", "step": "updates", "evaluations": "evaluations of the network"}
    yield from header(["", *(shown.get(name, name) for name in names)])
    base = study.curves[0].points[0]
    yield cells(["base", *(number(base[name]) for name in names[:-2]), "0", "0"])
    for method in study.methods:
        yield cells([method, *(average(study, method, name) for name in names)])


def average(study: Study, method: str, name: str) -> str:
    """The mean of a number at the ends of a method's runs, with its standard deviation over seeds."""
    values = [curve.points[-1][name] for curve in study.of(method)]
    if not all(math.isfinite(value) for value in values):
        return "n/a"
    whole = name in ("step", "evaluations")
    mean = f"{fmean(values):.0f}" if whole else number(fmean(values))
    if len(values) < 2:
        return mean
    return f"{mean} ± {stdev(values):.0f}" if whole else f"{mean} ± {number(stdev(values), like=fmean(values))}"


def header(heads: Sequence[str]) -> Iterator[str]:
    """The first two lines of a table."""
    yield cells(heads)
    yield "|---|" + "--:|" * (len(heads) - 1)


def cells(values: Sequence[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(values)} |"


def chart(study: Study) -> str:
    """Reward against FID as a picture of its own, as far as twice what the level is above the floor."""
    most = study.floor + 2 * max(study.levels[1] - study.floor, 1.0)
    near = [
        Curve(c.group, c.seed, tuple(p for i, p in enumerate(c.points) if not i or p["fid"] <= most))
        for c in study.curves
    ]
    drawn = str(curves_chart(near, study.reward, "fid", study.levels[1]))
    svg = re.search(r"<svg[^>]*>(.*?)</svg>", drawn, re.DOTALL)
    assert svg is not None
    keys = "".join(
        f'<rect class="run c{i}" x="50" y="{276 + 16 * i}" width="10" height="10"/>'
        f'<text class="tick" x="66" y="{285 + 16 * i}">{method}</text>'
        for i, method in enumerate(study.methods)
    )
    height = 280 + 16 * len(study.methods)
    box = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 400 {height}" width="640">'
    return f"{box}<style>{STYLE}</style>{svg[1]}{keys}</svg>\n"


def sheet(study: Study, sets: Path, path: Path, level: float | None) -> None:
    """The same prompts, first seed and view by the base and the first run of each method.

    Args:
        study: The runs.
        sets: Where their samples are.
        path: The picture to write.
        level: Each run's measured checkpoint of the highest reward without a larger FID; None takes the last one.
    """
    import torch

    from align3d.scenes.pictures import save_sheet

    chosen = {"base": ("base", "")}
    for name, curve in study.runs.items():
        if curve.group in chosen:
            continue
        near = [p for p in curve.points if level is None or p["fid"] <= level]
        point = near[-1] if level is None else max(near, key=lambda p: p[study.reward], default=curve.points[0])
        said = f", FID {point['fid']:.0f}, {number(point[study.reward])}"
        chosen[curve.group] = (f"{name}-{point.step:06}" if point.step else "base", said)
    pixels = {title: pictures(sets / name) for title, (name, _) in chosen.items()}
    prompts = study.table["prompts"]
    rows = spread(len(prompts), SHOWN)
    images = torch.stack([pixels[title][i, 0] for i in rows for title in chosen])
    labels = [
        prompts[i] if title == "base" else title + said * (i == 0) for i in rows for title, (_, said) in chosen.items()
    ]
    save_sheet(path, images, len(chosen), labels)


def pictures(folder: Path) -> Any:
    """The first seed's views of every prompt, (P, V, 3, H, W), in [0, 1]."""
    import torch

    return torch.cat([sampleset.load(block).pictures[:, 0] for block in sorted(folder.glob("block-*"))]).float() / 255


def recoloured(prompt: str) -> list[str]:
    """A prompt with one of its colours replaced, in all ways."""
    found = re.finditer(rf"\b({'|'.join(COLOURS)})\b", prompt)
    return [prompt[: m.start()] + c + prompt[m.end() :] for m in found for c in COLOURS if c != m[0]]


def right(folder: Path, prompts: Sequence[str]) -> tuple[int, int]:
    """In how many samples of a set clip-tiny finds the prompt nearer than with a colour replaced; and of how many."""
    from align3d.rewards.clip_tiny import image_features, text_features

    good = 0
    for views, prompt in zip(pictures(folder), prompts, strict=True):
        similarity = image_features(views) @ text_features([prompt, *recoloured(prompt)]).T
        good += int(similarity.mean(0).argmax() == 0)
    return good, len(prompts)


def write(studies: Sequence[Study], folders: dict[str, Path], docs: Path, setup: str) -> Path:
    """benchmark.md and its pictures.

    Args:
        studies: One for each reward.
        folders: Reward -> the folder of its comparison.
        docs: Where to write.
        setup: What was run, in Markdown.
    """
    (docs / "pictures").mkdir(parents=True, exist_ok=True)
    verdicts = [verdict(study) for study in studies]
    good, all_ = right(folders[studies[0].reward] / "sets" / "base", studies[0].table["prompts"])
    parts = [
        "# Which method is better\n",
        *(f"- {text}" for text, _ in verdicts),
        f"\n{CLAIM} is ahead of {' and '.join(AGAINST)} at equal FID for {sum(ok for _, ok in verdicts)} of "
        f"{len(verdicts)} rewards.\n",
        setup,
        f"\nThe base model has both colours right in {good} of {all_} samples of these prompts, if clip-tiny is asked "
        "whether the prompt fits better than all those with one of its colours replaced.\n",
    ]
    for study in studies:
        name = study.reward
        names = (f"benchmark-{name}{end}" for end in ("-near.webp", "-end.webp", ".svg"))
        near, far, curves = (docs / "pictures" / file for file in names)
        sheet(study, folders[name] / "sets", near, study.levels[1])
        sheet(study, folders[name] / "sets", far, None)
        curves.write_text(chart(study), encoding="utf-8")
        low, top = study.levels
        parts += [
            f"## Trained on {name}\n",
            f"![{name} against FID](pictures/{curves.name})\n",
            f"### At FID {number(top)}\n",
            *at_level(study, top),
            f"\n![The same prompts at that FID or below](pictures/{near.name})\n",
            "Prompts are evenly spaced over the list; first seeds, first view; each run's best measured checkpoint at "
            "that FID or below.\n",
            "### At the end\n",
            *at_end(study),
            f"\n![The same prompts at the end](pictures/{far.name})\n",
            f"<details><summary>Halfway, at FID {number(low)}</summary>\n",
            *at_level(study, low),
            "\n</details>\n",
        ]
    path = docs / "benchmark.md"
    path.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")
    return path
