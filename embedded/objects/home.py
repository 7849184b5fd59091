"""Furniture and what stands in a room. Front towards +Z."""

from __future__ import annotations

import math

from .build import Builder
from .category import Category
from .palette import CREAM, DARK, FLAME, GLASS, STEEL, WHITE, WOOD


def _legs(b: Builder, x: float, z: float, top: float, bottom: float, radius: float, color) -> None:
    for sx in (-x, x):
        for sz in (-z, z):
            b.tube((sx, (top + bottom) / 2, sz), (top - bottom) / 2, radius, color)


def chair(b: Builder) -> None:
    """A seat, a back of one board or of slats, sometimes arms."""
    leg, back = b.u(0.75, 1.0), b.u(0.6, 0.85)
    _legs(b, 0.58, 0.56, 0.0, -leg, 0.12, b.second)
    b.box((0, 0.08, 0), (0.74, 0.12, 0.72), b.main, r=0.06)
    style = b.rng.integers(3)
    if style == 0:
        b.box((0, 0.15 + back, -0.64), (0.7, back, 0.1), b.main, r=0.08)
    else:
        b.box((0, 0.05 + 2 * back, -0.64), (0.7, 0.17, 0.1), b.main, r=0.05)
        for x in (-0.6, 0.0, 0.6) if style == 1 else (-0.6, 0.6):
            b.box((x, 0.1 + back, -0.64), (0.1, back, 0.08), b.main)
        if style == 2:
            b.box((0, 0.12 + back, -0.64), (0.6, 0.15, 0.08), b.main)
    if b.chance(0.25):
        for x in (-0.68, 0.68):
            b.box((x, 0.55, 0.0), (0.1, 0.09, 0.62), b.main)
            b.box((x, 0.35, 0.5), (0.09, 0.25, 0.09), b.main)


def table(b: Builder) -> None:
    """A thick top, round or rectangular, on four legs or on one foot."""
    leg, thick = b.u(0.85, 1.1), 0.13
    kind = b.rng.random()
    if kind < 0.4:
        b.tube((0, 0, 0), thick, 1.15, b.main, r=0.04)
        if b.chance(0.5):
            b.tube((0, -leg / 2, 0), leg / 2, 0.2, b.second)
            b.cone((0, -leg, 0), 0.1, 0.7, 0.5, b.second)
        else:
            _legs(b, 0.66, 0.66, 0, -leg, 0.14, b.second)
    else:
        w, d = b.u(1.15, 1.35), b.u(0.75, 0.9)
        b.box((0, 0, 0), (w, thick, d), b.main)
        for x in (-w + 0.18, w - 0.18):
            for z in (-d + 0.18, d - 0.18):
                b.box((x, -leg / 2, z), (0.14, leg / 2, 0.14), b.second)


def lamp(b: Builder) -> None:
    """A table lamp; the foot is a disc, a ball or a vase."""
    top = b.u(0.38, 0.55)
    b.cone((0, 0.72, 0), b.u(0.4, 0.5), b.u(0.7, 0.82), top, b.main)
    b.tube((0, 0, 0), 0.5, 0.1, b.second)
    kind = b.rng.integers(3)
    if kind == 0:
        b.cone((0, -0.72, 0), 0.1, 0.58, 0.48, b.second, r=0.05)
        b.tube((0, -0.4, 0), 0.35, 0.1, b.second)
    elif kind == 1:
        b.ball((0, -0.38, 0), (0.42, 0.42, 0.42), b.second)
        b.tube((0, -0.78, 0), 0.06, 0.35, b.second)
    else:
        b.cone((0, -0.42, 0), 0.4, 0.5, 0.16, b.second, r=0.06)


def sofa(b: Builder) -> None:
    """Two or three seats between thick arms."""
    w, high = b.u(1.1, 1.4), b.u(0.42, 0.55)
    b.across = 0
    b.box((0, -0.2, 0), (w, 0.27, 0.55), b.main, r=0.08)
    b.box((0, 0.25, -0.42), (w, high, 0.18), b.main, r=0.12)
    for s in (-1, 1):
        b.box((s * w, 0.02, 0.02), (0.2, 0.46, 0.6), b.main, r=0.12)
    seats = 2 if b.chance(0.6) else 3
    half = (w - 0.2) / seats
    for k in range(seats):
        x = (2 * k + 1) * half - (w - 0.2)
        b.box((x, 0.13, 0.12), (half * 0.94, 0.13, 0.44), b.second, r=0.09)
    for x in (-w + 0.05, w - 0.05):
        for z in (-0.38, 0.42):
            b.tube((x, -0.55, z), 0.13, 0.1, WOOD)


def bed(b: Builder) -> None:
    """A mattress with one or two pillows between a high and a low board."""
    w, high = b.u(0.7, 1.0), b.u(0.45, 0.7)
    b.across = 0
    b.box((0, -0.2, 0), (w, 0.16, 1.2), b.second)
    b.box((0, 0.06, 0.04), (w * 0.95, 0.2, 1.12), b.main, r=0.1)
    b.box((0, high - 0.3, -1.16), (w, high, 0.11), b.second)
    if b.chance(0.5):
        b.box((0, 0.0, 1.18), (w, 0.3, 0.1), b.second)
    for x in (-0.45, 0.45) if w > 0.85 else (0,):
        b.box((x * w, 0.32, -0.78), (0.4 if w > 0.85 else 0.48, 0.12, 0.24), WHITE, r=0.1)
    _legs(b, w - 0.12, 1.08, -0.2, -0.62, 0.12, b.second)


def bench(b: Builder) -> None:
    """A park bench: boards on two frames."""
    w, high = b.u(1.2, 1.5), b.u(0.5, 0.7)
    for z in (-0.26, 0.16):
        b.box((0, 0, z), (w, 0.1, 0.18), b.main)
    for y in (0.36, 0.36 + high * 0.75):
        b.box((0, y, -0.55), (w, 0.16, 0.08), b.main, rot=(-8, 0, 0))
    for x in (-w + 0.25, w - 0.25):
        b.box((x, -0.42, 0.2), (0.11, 0.42, 0.12), b.second)
        b.box((x, 0.05, -0.48), (0.11, 0.9, 0.1), b.second, rot=(-8, 0, 0))
        if w > 1.3:
            b.box((x, 0.42, -0.08), (0.1, 0.08, 0.42), b.second)
            b.box((x, 0.2, 0.25), (0.1, 0.28, 0.1), b.second)


def bookcase(b: Builder) -> None:
    """Shelves full of books of many colours."""
    floors, w = int(b.rng.integers(3, 5)), b.u(0.65, 0.85)
    step = 0.62
    top = floors * step
    b.box((0, top / 2, -0.28), (w, top / 2, 0.07), b.main)
    for x in (-w, w):
        b.box((x, top / 2, 0), (0.09, top / 2 + 0.08, 0.35), b.main)
    for k in range(floors + 1):
        b.box((0, k * step, 0), (w, 0.08, 0.35), b.main)
    hues = (
        (0.8, 0.15, 0.12),
        (0.15, 0.3, 0.75),
        (0.95, 0.8, 0.2),
        (0.15, 0.55, 0.25),
        (0.93, 0.9, 0.85),
        (0.5, 0.2, 0.6),
    )
    for k in range(floors):
        x = -w + 0.12
        while x < w - 0.24:
            width = b.u(0.09, 0.14)
            high = b.u(0.17, 0.23)
            color = b.second if b.chance(0.34) else hues[b.rng.integers(len(hues))]
            b.box((x + width, k * step + 0.07 + high, 0.02), (width, high, 0.24), color, r=0.01)
            x += 2 * width


def television(b: Builder) -> None:
    """A flat one on a foot, or an old one in a box with aerials."""
    if b.chance(0.6):
        b.box((0, 0.2, 0), (1.2, 0.72, 0.1), b.main)
        b.box((0, 0.2, 0.05), (1.08, 0.6, 0.08), b.second)
        b.box((0, -0.62, 0), (0.16, 0.2, 0.1), b.main)
        b.box((0, -0.82, 0), (0.6, 0.08, 0.3), b.main)
    else:
        b.box((0, 0, 0), (0.95, 0.7, 0.5), b.main, r=0.1)
        b.box((-0.2, 0.02, 0.46), (0.62, 0.52, 0.08), b.second, r=0.08)
        for y in (0.3, -0.05):
            b.ball((0.68, y, 0.48), 0.12, DARK)
        for s in (-1, 1):
            b.limb((s * 0.08, 0.65, 0), (s * 0.5, 1.25, 0), 0.06, STEEL)
            b.tube((s * 0.6, -0.8, 0), 0.15, 0.1, DARK)


def laptop(b: Builder) -> None:
    """An open one: keyboard flat, screen leaning back."""
    w, lean = b.u(0.9, 1.05), b.u(10, 25)
    b.box((0, 0, 0.1), (w, 0.08, 0.65), b.main)
    b.box((0, 0.05, -0.05), (w * 0.86, 0.06, 0.36), DARK, r=0.01)
    b.box((0, 0.05, 0.5), (w * 0.3, 0.055, 0.15), b.main * 0.7, r=0.01)
    s, c = math.sin(math.radians(lean)), math.cos(math.radians(lean))
    b.box((0, 0.7 * c, -0.58 - 0.7 * s), (w, 0.7, 0.08), b.main, rot=(-lean, 0, 0))
    b.box((0, 0.72 * c + 0.05 * s, -0.58 - 0.72 * s + 0.05 * c), (w * 0.88, 0.58, 0.05), b.second, rot=(-lean, 0, 0))


def clock(b: Builder) -> None:
    """An alarm clock with two bells, or a plain round one on feet."""
    b.tube((0, 0, 0), 0.28, 0.85, b.main, rot=(90, 0, 0), r=0.08)
    b.tube((0, 0, 0.12), 0.2, 0.68, b.second, rot=(90, 0, 0))
    hour, minute = b.u(0, 360), b.u(0, 360)
    for angle, reach, thick in ((hour, 0.36, 0.08), (minute, 0.54, 0.06)):
        s, c = math.sin(math.radians(angle)), math.cos(math.radians(angle))
        b.limb((0, 0, 0.33), (reach * s, reach * c, 0.33), thick, DARK)
    for k in range(4):
        x, y = math.sin(k * math.pi / 2) * 0.56, math.cos(k * math.pi / 2) * 0.56
        b.ball((x, y, 0.31), (0.07, 0.07, 0.05), DARK)
    for s in (-1, 1):
        b.limb((s * 0.4, -0.7, 0), (s * 0.58, -1.02, 0), 0.12, b.main)
    if b.chance(0.6):
        for s in (-1, 1):
            b.dome((s * 0.45, 0.78, 0), (0.36, 0.3, 0.3), b.main, rot=(0, 0, -s * 30))
        b.limb((0, 0.8, 0), (0, 1.1, 0), 0.08, b.main)


def stool(b: Builder) -> None:
    """A round seat on three or four spread legs."""
    n, high = 3 + int(b.chance(0.5)), b.u(0.9, 1.4)
    b.tube((0, 0, 0), 0.15, 0.72, b.main, r=0.08)
    for k in range(n):
        a = 2 * math.pi * (k + 0.3) / n
        x, z = math.cos(a), math.sin(a)
        b.limb((x * 0.4, -0.05, z * 0.4), (x * 0.62, -high, z * 0.62), 0.11, b.second)
    if b.chance(0.6):
        b.torus((0, -high * 0.6, 0), 0.5, 0.07, b.second)


def candle(b: Builder) -> None:
    """A thick candle with its flame, on a plate."""
    h = b.u(0.5, 0.85)
    b.tube((0, 0, 0), h, b.u(0.26, 0.36), b.main, r=0.05)
    b.cone((0, -h, 0), 0.1, 0.55, 0.68, b.second)
    b.ball((0, h + 0.2, 0), (0.14, 0.25, 0.14), FLAME)
    if b.chance(0.5):
        b.arc((0.7, -h + 0.05, 0), 0.2, 0.07, 180, b.second)


def hourglass(b: Builder) -> None:
    """Two glass cones, sand below, between boards on posts."""
    for s in (-1, 1):
        b.tube((0, s * 0.95, 0), 0.11, 0.66, b.main, r=0.05)
        b.cone((0, s * 0.45, 0), 0.42, *((0.1, 0.46) if s > 0 else (0.46, 0.1)), GLASS * 0.3 + 0.68)
    b.cone((0, -0.6, 0), 0.27, 0.48, 0.3, b.second)
    b.cone((0, 0.3, 0), 0.2, 0.12, 0.27, b.second)
    for k in range(3):
        a = 2 * math.pi * (k / 3 + 0.08)
        b.tube((0.56 * math.cos(a), 0, 0.56 * math.sin(a)), 0.9, 0.075, b.main)


def guitar(b: Builder) -> None:
    """A body with a waist, a hole, a long neck and a head; stands upright."""
    wide = b.u(0.58, 0.68)
    b.disc((0, -0.62, 0), (wide, 0.17, 0.5), b.main, rot=(90, 0, 0), r=0.05)
    b.disc((0, 0.02, 0), (wide * 0.76, 0.17, 0.4), b.main, rot=(90, 0, 0), r=0.05)
    b.box((0, -0.3, 0), (wide * 0.64, 0.3, 0.165), b.main, r=0.05)
    b.tube((0, -0.2, 0.1), 0.1, 0.22, DARK, rot=(90, 0, 0), r=0.01)
    b.box((0, -0.74, 0.18), (0.28, 0.08, 0.06), b.second)
    b.box((0, 0.62, 0.1), (0.11, 0.62, 0.1), b.second)
    b.box((0, 1.34, 0.05), (0.18, 0.22, 0.09), b.second)
    for s in (-1, 1):
        for y in (1.25, 1.46):
            b.ball((s * 0.24, y, 0.05), 0.08, CREAM)


HOME = {
    "chair": Category(chair, ("chair",), "legs", "brown", 30, wooden=True),
    "table": Category(table, ("table",), "legs", "brown", 25, wooden=True),
    "lamp": Category(lamp, ("lamp", "table lamp"), "base", "black", 0, patterns=("striped", "dotted"), small=True),
    "sofa": Category(sofa, ("sofa", "couch"), "cushions", None, 30, patterns=("striped",)),
    "bed": Category(bed, ("bed",), "frame", "brown", 35, patterns=("striped", "dotted")),
    "bench": Category(bench, ("bench", "park bench"), "legs", "black", 30, wooden=True),
    "bookcase": Category(bookcase, ("bookcase", "bookshelf"), "books", None, 25, wooden=True),
    "television": Category(television, ("television", "tv"), "screen", "blue", 25, ("black",)),
    "laptop": Category(laptop, ("laptop", "laptop computer"), "screen", "cyan", 28, ("gray",)),
    "clock": Category(clock, ("clock", "alarm clock"), "face", "white", 15),
    "stool": Category(stool, ("stool",), "legs", "brown", 15, wooden=True),
    "candle": Category(candle, ("candle",), "plate", "gold", 20, ("white",), ("striped",), small=True),
    "hourglass": Category(hourglass, ("hourglass", "sand timer"), "sand", "beige", 0, ("brown",), wooden=True),
    "guitar": Category(guitar, ("guitar", "acoustic guitar"), "neck", "brown", 15, ("brown", "orange")),
}
