"""Writes the prompt lists of the embedded model: one prompt a line, train.txt and heldout.txt.

    python embedded/make_prompts.py [align3d/assets/prompts]

Prompts of train.txt name colours that the training objects have. Every prompt of heldout.txt is "a COLOUR NOUN" whose
colour no training object of that category has.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from objects.captions import article, part_phrase, plural
from objects.palette import COLORS
from objects.sample import SIZES
from objects.table import CATEGORIES, colors_of

ASSETS = Path(__file__).parent.parent / "align3d" / "assets" / "prompts"
HELDOUT = 64
DULL = {"gray", "beige", "brown"}  # taken for a held-out prompt only where a category has no other


def heldout() -> list[str]:
    """Prompts of held-out pairs: at most one a category, bright colours first, in the table's order."""
    prompts = []
    for name, kind in CATEGORIES.items():
        colors = sorted(colors_of(name, held=True), key=lambda color: color in DULL)
        prompts.append((colors[0] in DULL, article(f"{colors[0]} {kind.nouns[0]}")))
    bright = [prompt for dull, prompt in prompts if not dull]
    keep = np.linspace(0, len(bright) - 1, min(HELDOUT, len(bright))).round().astype(int)
    return [bright[i] for i in keep]


def train(seed: int = 0) -> list[str]:
    """About 300 different prompts: all categories, colours, coloured parts; patterns, sizes, numbers, relations."""
    rng = np.random.default_rng(seed)
    lines = dict.fromkeys(prompt for name in CATEGORIES for prompt in _of_category(rng, name))
    lines.update(dict.fromkeys(_numbers(rng)))
    lines.update(dict.fromkeys(_relations(rng)))
    return list(lines)


def _color(rng: np.random.Generator, category: str) -> str:
    colors = colors_of(category, held=False)
    return colors[rng.integers(len(colors))]


def _of_category(rng: np.random.Generator, name: str) -> Iterator[str]:
    """Two or three plain colours, a coloured part, and a pattern or a size."""
    kind = CATEGORIES[name]
    noun, colors = kind.nouns[0], colors_of(name, held=False)
    picked = [colors[i] for i in rng.permutation(len(colors))]
    yield from (article(f"{color} {noun}") for color in dict.fromkeys([*kind.natural[:1], *picked[:2]]))
    others = [color for color in COLORS if color != picked[2]]
    tail = part_phrase(others[rng.integers(len(others))], kind.part)
    yield f"{article(f'{picked[2]} {noun}')} with {tail}"
    ink = next(color for color in ("white", "yellow") if color != picked[3])
    if kind.patterns:
        marks = {"striped": "stripes", "dotted": "dots"}[kind.patterns[rng.integers(len(kind.patterns))]]
        yield f"{article(f'{picked[3]} {noun}')} with {ink} {marks}"
    elif kind.stretch and rng.random() < 0.35:
        yield article(f"{list(SIZES)[rng.integers(len(SIZES))]} {picked[3]} {noun}")


def _numbers(rng: np.random.Generator) -> Iterator[str]:
    small = [name for name, kind in CATEGORIES.items() if kind.small]
    for i in rng.permutation(len(small))[:12]:
        yield f"{('two', 'three')[rng.integers(2)]} {_color(rng, small[i])} {plural(CATEGORIES[small[i]].nouns[0])}"


def _relations(rng: np.random.Generator) -> Iterator[str]:
    small = [name for name, kind in CATEGORIES.items() if kind.small]
    thing = [article(f"{_color(rng, small[i])} {CATEGORIES[small[i]].nouns[0]}") for i in rng.permutation(len(small))]
    for first, base in zip(thing[:8], ("table", "stool") * 4, strict=True):
        yield f"{first} on {article(f'{_color(rng, base)} {base}')}"
    for first in thing[8:14]:
        yield f"{first} on {article(f'{list(COLORS)[rng.integers(len(COLORS))]} cube')}"
    for first, second in zip(thing[:6], thing[14:20], strict=True):
        yield f"{first} next to {second}"
    for _ in range(3):
        yield f"{article(_color(rng, 'flower') + ' flower')} in {article(_color(rng, 'vase') + ' vase')}"


def main(argv: list[str] | None = None) -> int:
    """Write both files; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path, nargs="?", default=ASSETS, help="folder; made if missing")
    out = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in (("train.txt", train()), ("heldout.txt", heldout())):
        (out / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{out / name}: {len(lines)} prompts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
