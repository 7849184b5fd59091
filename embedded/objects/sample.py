"""Draws captioned objects: object `index` of a data set is a function of (seed, index) and of nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import captions
from .build import BANDS, DOTS, PLAIN, Builder
from .palette import COLORS, jitter
from .table import CATEGORIES, colors_of, held_out

SIZES = {
    "tall": (0.8, 1.3, 0.8),
    "short": (1.18, 0.75, 1.18),
    "thin": (0.7, 1.1, 0.7),
    "wide": (1.3, 0.88, 1.12),
}
SMALL = 0.7  # the size of what captions call small; the others fill 0.94 to 1
PATTERNS = {"": PLAIN, "striped": BANDS, "dotted": DOTS}
PLAIN_PARTS = {"legs", "frame", "trunk", "handle", "base", "neck"}  # whose colour may be the object's own
BASES = ("cube", "table", "stool")


@dataclass(frozen=True)
class Sample:
    """One object: what the tracer draws, and what people say about it."""

    prims: np.ndarray  # (n, 40)
    frame: np.ndarray  # (12,)
    captions: list[str]
    meta: dict
    novel: np.ndarray  # (2, 2): azimuth and elevation of two free cameras, degrees


def draw(seed: int, index: int, held: bool = False) -> Sample:
    """Object `index` of the data set `seed`.

    Args:
        seed: Of the data set.
        index: From 0.
        held: Draw single objects with held-out (category, colour) pairs only, instead of training objects.
    """
    rng = np.random.default_rng([seed, index, int(held)])
    novel = np.stack([rng.uniform(0, 360, 2), rng.uniform(-5, 50, 2)], 1).astype(np.float32)
    kind = rng.random()
    if held or kind < 0.86:
        category = list(CATEGORIES)[rng.integers(len(CATEGORIES))]
        prims, frame, words, meta = one(rng, category, held)
    elif kind < 0.91:
        prims, frame, words, meta = _several(rng)
    else:
        prims, frame, words, meta = _relation(rng)
    return Sample(prims, frame, words, meta, novel)


def build(rng, category, color, part_color=None, pattern="", ink=None) -> Builder:
    """An object of a category in its own frame.

    Args:
        rng: Draws its proportions, options and shades.
        category: A key of CATEGORIES.
        color: Name of the main colour.
        part_color: Name of the part's colour; None takes the category's own choice.
        pattern: "", "striped" or "dotted".
        ink: Name of the pattern's colour.
    """
    kind = CATEGORIES[category]
    main = jitter(rng, color)
    own = part_color or kind.part_color
    if not part_color and own == color:
        own = None if kind.part in PLAIN_PARTS else "black" if color == "white" else "white"
    second = main.copy() if own is None or own == color else jitter(rng, own)
    builder = Builder(rng, main, second, PATTERNS[pattern], jitter(rng, ink) if ink else np.ones(3))
    kind.build(builder)
    return builder


def one(rng, category: str, held: bool = False, color: str | None = None, part_color: str | None = None):
    """A single object: primitives, frame, captions, meta.

    Args:
        rng: Draws everything that is not given.
        category: A key of CATEGORIES.
        held: Choose among the held-out colours of the category, or any if it has none.
        color: Name of the main colour.
        part_color: Name of the part's colour, which captions then tell.
    """
    kind = CATEGORIES[category]
    color = color or _color(rng, category, held)
    pattern, ink, size, fill, stretch = "", None, "", rng.uniform(0.94, 1.0), (1.0, 1.0, 1.0)
    u = rng.random()
    others = [c for c in COLORS if c != color]
    if part_color is None and u < 0.42:
        part_color = others[rng.integers(len(others))]
    elif part_color is None and u < 0.62 and kind.patterns:
        pattern, ink = kind.patterns[rng.integers(len(kind.patterns))], others[rng.integers(len(others))]
    v = rng.random()
    if v < 0.2 and kind.stretch:
        size = list(SIZES)[rng.integers(4)]
        stretch = SIZES[size]
    elif v < 0.28:
        size, fill = "small", SMALL * fill
    builder = build(rng, category, color, part_color, pattern, ink)
    prims, frame = builder.place(kind.yaw + rng.uniform(-10, 10), fill, stretch)
    meta = {
        "noun": kind.nouns[0],
        "color": color,
        "part": "" if pattern else kind.part if part_color else "",
        "part_color": ink or part_color or "",
        "category": category,
        "split": "held" if held_out(category, color) else "train",
        "kind": "single",
        "size": size,
        "pattern": pattern,
    }
    words = captions.single(rng, meta, kind.nouns, kind.wooden and color == "brown")
    return prims, frame, words, meta


def _color(rng, category: str, held: bool = False) -> str:
    natural = CATEGORIES[category].natural
    if natural and not held and rng.random() < 0.3:
        return natural[rng.integers(len(natural))]
    colors = colors_of(category, held) or list(COLORS)
    return colors[rng.integers(len(colors))]


def _unit(builder: Builder, height: float = 1.2) -> tuple[float, np.ndarray, np.ndarray]:
    """The scale that makes the largest side `height`, and the corners after it."""
    low, high = builder.bounds()
    scale = height / float((high - low).max())
    return scale, low * scale, high * scale


def _small(rng) -> str:
    names = [name for name, kind in CATEGORIES.items() if kind.small]
    return names[rng.integers(len(names))]


def _meta(category: str, color: str, kind: str, **more) -> dict:
    plain = {"part": "", "part_color": "", "size": "", "pattern": ""}
    noun = CATEGORIES[category].nouns[0]
    return {"noun": noun, "color": color, "category": category, "split": "train", "kind": kind, **plain, **more}


def _several(rng):
    """Two to four equal objects side by side."""
    category, number = _small(rng), int(rng.choice((2, 3, 4), p=(0.5, 0.35, 0.15)))
    color, yaw = _color(rng, category), CATEGORIES[category].yaw
    whole, state = Builder(rng, np.ones(3), np.ones(3)), rng.bit_generator.state
    spots = {2: ((-1, 0), (1, 0)), 3: ((-1, -0.6), (1, -0.6), (0, 0.9)), 4: ((-1, -1), (1, -1), (-1, 1), (1, 1))}[
        number
    ]
    for x, z in spots:
        rng.bit_generator.state = state  # the same draws: equal objects
        thing = build(rng, category, color)
        scale, low, high = _unit(thing)
        half = max(high[0] - low[0], high[2] - low[2]) / 2 + 0.08
        whole.absorb(thing, (x * half - (low[0] + high[0]) / 2, -low[1], z * half), scale, yaw + rng.uniform(-8, 8))
    prims, frame = whole.place(rng.uniform(-10, 10), rng.uniform(0.94, 1.0))
    words = captions.several(rng, number, color, CATEGORIES[category].nouns)
    return prims, frame, words, _meta(category, color, "count", count=number)


def _relation(rng):
    """One thing on, beside or in another."""
    kind = ("on", "beside", "in")[rng.choice(3, p=(0.5, 0.38, 0.12))]
    category = "flower" if kind == "in" else _small(rng)
    color = _color(rng, category)
    thing = build(rng, category, color)
    whole = Builder(rng, np.ones(3), np.ones(3))
    noun, yaw = CATEGORIES[category].nouns[0], CATEGORIES[category].yaw
    if kind == "on":
        base = BASES[rng.integers(len(BASES))]
        other_color, other_noun = _base(rng, whole, base)
        scale, low, high = _unit(thing, 1.15)
        at = (-(low[0] + high[0]) / 2, -low[1], -(low[2] + high[2]) / 2)
        whole.absorb(thing, at, scale, yaw)
    else:
        base = "vase" if kind == "in" else _small(rng)
        while base == category:
            base = _small(rng)
        other_color, other_noun = _color(rng, base), CATEGORIES[base].nouns[0]
        other = build(rng, base, other_color)
        scale, low, high = _unit(thing, 1.5 if kind == "in" else 1.2)
        scale2, low2, high2 = _unit(other, 1.1)
        if kind == "in":
            whole.absorb(other, (0, -high2[1], 0), scale2, 0)
            whole.absorb(thing, (0, -low[1] - 0.45, 0), scale, yaw)
        else:
            gap = rng.uniform(0.05, 0.2)
            whole.absorb(thing, (-high[0] - gap, -low[1], 0), scale, yaw)
            whole.absorb(other, (-low2[0] + gap, -low2[1], 0), scale2, CATEGORIES[base].yaw)
    prims, frame = whole.place(rng.uniform(-10, 10), rng.uniform(0.94, 1.0))
    words = captions.relation(rng, kind, f"{color} {noun}", f"{other_color} {other_noun}")
    return prims, frame, words, _meta(category, color, kind, other=base, other_color=other_color)


def _base(rng, whole: Builder, base: str) -> tuple[str, str]:
    """Put a cube, a table or a stool with its top at height 0 into the builder; its colour and noun."""
    if base == "cube":
        color = list(COLORS)[rng.integers(len(COLORS))]
        half = rng.uniform(0.5, 0.65)
        whole.box((0, -half, 0), (half, half, half), jitter(rng, color), r=0.04, rot=(0, 25, 0))
        return color, ("cube", "box")[int(rng.integers(2))]
    color = _color(rng, base)
    other = build(rng, base, color)
    scale, _, high = _unit(other, 1.7 if base == "table" else 1.2)
    whole.absorb(other, (0, -high[1], 0), scale, CATEGORIES[base].yaw)
    return color, CATEGORIES[base].nouns[0]
