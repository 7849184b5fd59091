"""Vessels and food. Front towards +Z."""

from __future__ import annotations

import math

import numpy as np

from .build import Builder
from .category import Category
from .palette import CREAM, FLAME, WHITE, WOOD

BROWN = np.array((0.36, 0.20, 0.09))
CRUST = np.array((0.86, 0.62, 0.30))


def mug(b: Builder) -> None:
    """A cup with a thick rim, dark inside, and a bold handle."""
    h, top, foot = b.u(0.7, 0.95), b.u(0.72, 0.85), b.u(0.6, 0.75)
    b.cone((0, 0, 0), h, foot, top, b.main, r=0.06)
    b.cone((0, 0.2, 0), h, foot - 0.16, top - 0.15, b.main * 0.62, cut=True)
    b.arc(((foot + top) / 2 - 0.04, -0.02, 0), h * 0.52, 0.14, 95, b.second, rot=(0, 0, -90))


def bottle(b: Builder) -> None:
    """Body, shoulders, neck, cap and a label."""
    h, r = b.u(0.6, 0.85), b.u(0.4, 0.48)
    b.tube((0, -0.35, 0), h, r, b.main, r=0.1)
    b.cone((0, h - 0.25, 0), 0.2, r - 0.03, 0.17, b.main)
    b.tube((0, h + 0.1, 0), 0.3, 0.17, b.main)
    b.tube((0, h + 0.42, 0), 0.13, 0.22, b.second)
    if b.chance(0.7):
        b.tube((0, -0.35, 0), h * 0.45, r + 0.015, b.second * 0.25 + CREAM * 0.75, r=0.01)


def teapot(b: Builder) -> None:
    """A round belly with spout, handle, lid and knob."""
    fat = b.u(0.68, 0.78)
    b.ball((0, -0.05, 0), (fat, 0.6, fat), b.main)
    b.tube((0, -0.6, 0), 0.08, 0.42, b.main)
    b.dome((0, 0.4, 0), (0.44, 0.2, 0.44), b.second)
    b.ball((0, 0.68, 0), 0.13, b.second)
    b.limb((0.5, -0.12, 0), (1.08, 0.42, 0), 0.2, b.main, tip=0.1)
    b.torus((-fat - 0.05, 0.02, 0), 0.36, 0.1, b.second, rot=(90, 0, 0))


def vase(b: Builder) -> None:
    """A belly, a narrow neck and a flared rim."""
    fat, high = b.u(0.45, 0.62), b.u(0.45, 0.6)
    b.ball((0, -0.3, 0), (fat, high, fat), b.main)
    b.cone((0, -0.3 - high, 0), 0.14, 0.34, 0.3, b.main)
    b.cone((0, high - 0.1, 0), 0.26, 0.26, 0.2, b.main)
    b.cone((0, high + 0.27, 0), 0.16, 0.2, 0.42, b.second)
    b.cone((0, high + 0.33, 0), 0.16, 0.08, 0.34, b.second * 0.5, cut=True)
    if b.chance(0.35):
        for s in (-1, 1):
            b.arc((s * 0.34, high - 0.12, 0), 0.24, 0.08, 120, b.second, rot=(0, 0, -s * 90))


def goblet(b: Builder) -> None:
    """A deep bowl on a stem and a foot."""
    h = b.u(0.42, 0.58)
    b.ball((0, 0.35, 0), (0.56, h + 0.18, 0.56), b.main)
    b.box((0, 0.35 + h + 0.2, 0), (0.8, 0.4, 0.8), b.main * 0.6, cut=True)
    b.ball((0, 0.4, 0), (0.44, h + 0.12, 0.44), b.main * 0.6, cut=True)
    b.tube((0, -0.55, 0), 0.45, 0.11, b.second)
    b.ball((0, -0.42, 0), (0.2, 0.14, 0.2), b.second)
    b.cone((0, -0.98, 0), 0.1, 0.52, 0.34, b.second)


def bucket(b: Builder) -> None:
    """A pail, hollow, with its handle up."""
    h = b.u(0.6, 0.75)
    b.cone((0, -0.1, 0), h, 0.52, 0.78, b.main)
    b.cone((0, 0.05, 0), h, 0.4, 0.68, b.main * 0.55, cut=True)
    b.torus((0, h - 0.12, 0), 0.76, 0.07, b.main)
    b.arc((0, h - 0.15, 0), 0.78, 0.075, 88, b.second)


def barrel(b: Builder) -> None:
    """Staves bulging between hoops."""
    fat = b.u(0.68, 0.8)
    b.ball((0, 0, 0), (fat, 1.5, fat), b.main)
    for s in (-1, 1):
        b.box((0, s * 1.4, 0), (1, 0.55, 1), b.main * 0.8, cut=True)
    for y in (-0.62, -0.22, 0.22, 0.62):
        b.tube((0, y, 0), 0.08, fat * math.sqrt(1 - (y / 1.5) ** 2) + 0.025, b.second, r=0.01)


def cake(b: Builder) -> None:
    """One to three layers with icing, candles or a cherry."""
    layers, radius, y = int(b.rng.integers(1, 4)), 0.92, 0.0
    for _ in range(layers):
        b.tube((0, y, 0), 0.22, radius, b.main)
        b.tube((0, y + 0.26, 0), 0.1, radius + 0.04, b.second, r=0.08)
        y, radius = y + 0.54, radius * 0.68
    y -= 0.2
    radius = radius / 0.68 * 0.6
    if b.chance(0.7):
        n = int(b.rng.integers(3, 6)) if layers < 3 else 1
        for k in range(n):
            a = 2 * math.pi * k / n + 0.4
            x, z = (radius * math.cos(a), radius * math.sin(a)) if n > 1 else (0, 0)
            b.tube((x, y + 0.2, z), 0.22, 0.065, WHITE)
            b.ball((x, y + 0.5, z), (0.07, 0.12, 0.07), FLAME)
    else:
        b.ball((0, y + 0.15, 0), 0.17, np.array((0.8, 0.05, 0.1)))


def icecream(b: Builder) -> None:
    """One to three scoops on a wafer cone."""
    b.cone((0, -0.55, 0), 0.7, 0.05, 0.46, b.second)
    b.torus((0, 0.12, 0), 0.42, 0.1, b.second)
    scoops = int(b.rng.integers(1, 4))
    for k in range(scoops):
        size = 0.52 - 0.08 * k
        b.ball((0, 0.32 + 0.48 * k, 0), (size, size * 0.88, size), b.main * (1 - 0.25 * k) + CREAM * 0.25 * k)
    if b.chance(0.4):
        b.ball((0, 0.32 + 0.48 * (scoops - 1) + 0.5, 0), 0.13, np.array((0.8, 0.05, 0.1)))


def donut(b: Builder) -> None:
    """A ring of dough with icing, sometimes with sprinkles."""
    ring, thick = b.u(0.6, 0.68), b.u(0.3, 0.36)
    b.torus((0, 0, 0), ring, thick, b.second)
    b.torus((0, 0.08, 0), ring, thick * 0.96, b.main)
    if b.chance(0.4):
        hues = ((0.95, 0.9, 0.2), (0.2, 0.5, 0.95), (0.95, 0.95, 0.95), (0.2, 0.75, 0.3), (0.95, 0.2, 0.3))
        for k in range(18):
            a, off = 2 * math.pi * (k + b.u(-0.2, 0.2)) / 18, (k % 3 - 1) * 0.15
            x, z = (ring + off) * math.cos(a), (ring + off) * math.sin(a)
            y = 0.08 + math.sqrt(max((thick * 0.96) ** 2 - off**2, 0))
            b.ball((x, y, z), 0.055, hues[k % 5])


def apple(b: Builder) -> None:
    """Dented above, with stem and leaf."""
    b.ball((0, 0, 0), (0.74, b.u(0.62, 0.72), 0.74), b.main)
    b.ball((0, 0.72, 0), (0.25, 0.2, 0.25), b.main * 0.7, cut=True)
    b.limb((0, 0.45, 0), (0.1, 0.95, 0), 0.07, WOOD)
    b.ball((0.32, 0.85, 0), (0.28, 0.09, 0.15), b.second, rot=(0, 0, 22))


def banana(b: Builder) -> None:
    """A curved fruit, the ends dark."""
    ring = b.u(0.95, 1.15)
    b.arc((0, ring, 0), ring, 0.25, 52, b.main, rot=(0, 0, 180))
    for s in (-1, 1):
        a = math.radians(52)
        x, y = s * ring * math.sin(a), ring - ring * math.cos(a)
        dx, dy = s * math.cos(a), math.sin(a)
        b.limb((x, y, 0), (x + dx * 0.3, y + dy * 0.3, 0), 0.24, b.main, tip=0.12)
        b.limb((x + dx * 0.3, y + dy * 0.3, 0), (x + dx * (0.48 if s > 0 else 0.36), y + dy * 0.44, 0), 0.11, b.second)


def pumpkin(b: Builder) -> None:
    """Ribs all round, a stem, and a carved face."""
    flat = b.u(0.54, 0.68)
    for k in range(8):
        a = math.pi * (k + 0.5) / 4
        at = (0.36 * math.cos(a), 0, 0.36 * math.sin(a))
        b.ball(at, (0.46, flat, 0.46), b.main * (1.0 if k % 2 else 0.93), join=k > 0)
    face = np.array((0.10, 0.05, 0.02)) if b.chance(0.85) else np.array((1.0, 0.9, 0.35))
    for s in (-1, 1):
        b.prism((s * 0.3, 0.06, 0.8), (0.19, 0.28, 0.3), face, cut=True)
    b.prism((0, -0.08, 0.8), (0.1, 0.12, 0.25), face, cut=True)
    b.box((0, -0.22, 0.8), (0.38, 0.1, 0.3), face, cut=True)
    for x in (-0.14, 0.16):
        b.box((x, -0.16, 0.7), (0.07, 0.06, 0.12), b.main, r=0.01)
    b.limb((0, flat - 0.1, 0), (0.1, flat + 0.3, 0), 0.15, b.second, tip=0.12)


def strawberry(b: Builder) -> None:
    """A cone with a round top, seeds and a crown of leaves."""
    b.limb((0, 0.2, 0), (0, -0.62, 0), 0.62, b.main, tip=0.17)
    for row, (y, r, n) in enumerate(((0.3, 0.62, 7), (0.02, 0.585, 7), (-0.26, 0.47, 6))):
        for k in range(n):
            a = 2 * math.pi * (k + 0.5 * (row % 2)) / n
            b.ball((r * math.cos(a), y, r * math.sin(a)), (0.055, 0.075, 0.055), CREAM * (1.0, 0.95, 0.5))
    for k in range(6):
        a = 2 * math.pi * k / 6
        b.ball(
            (0.3 * math.cos(a), 0.78, 0.3 * math.sin(a)), (0.32, 0.08, 0.16), b.second, rot=(0, -math.degrees(a), -14)
        )
    b.limb((0, 0.75, 0), (0, 1.0, 0), 0.08, b.second)


def pizza(b: Builder) -> None:
    """A whole one seen from above at a slant: crust, cheese, slices of sausage."""
    b.tube((0, 0, 0), 0.1, 1.0, CRUST)
    b.torus((0, 0.08, 0), 0.92, 0.12, CRUST * 0.92)
    b.tube((0, 0.06, 0), 0.1, 0.86, b.main)
    n = int(b.rng.integers(5, 8))
    for k in range(n):
        a = 2 * math.pi * k / n + b.u(-0.1, 0.1)
        b.tube((0.56 * math.cos(a), 0.16, 0.56 * math.sin(a)), 0.04, 0.17, b.second, r=0.01)
    b.tube((0, 0.16, 0), 0.04, 0.17, b.second, r=0.01)


def hamburger(b: Builder) -> None:
    """Bun, lettuce, meat, cheese, bun."""
    b.tube((0, -0.42, 0), 0.16, 0.82, b.main, r=0.12)
    b.tube((0, -0.2, 0), 0.13, 0.86, BROWN, r=0.08)
    if b.chance(0.7):
        b.box((0, -0.03, 0), (0.74, 0.05, 0.74), np.array((1.0, 0.8, 0.1)), rot=(0, b.u(0, 90), 0))
    b.tube((0, 0.06, 0), 0.07, 0.93, b.second)
    b.dome((0, 0.12, 0), (0.85, b.u(0.48, 0.65), 0.85), b.main)
    for k in range(9):
        a, e = k * 2.4, 0.35 + 0.5 * (k % 3)
        b.ball(
            (0.82 * math.sin(e) * math.cos(a), 0.12 + 0.56 * math.cos(e), 0.82 * math.sin(e) * math.sin(a)),
            0.055,
            CREAM,
        )


def cupcake(b: Builder) -> None:
    """A fluted paper cup, swirls of icing and a cherry."""
    b.cone((0, -0.42, 0), 0.42, 0.44, 0.66, b.second, sectors=(12, b.second * 0.72))
    for y, r in ((0.08, 0.72), (0.34, 0.55), (0.56, 0.36)):
        b.ball((0, y, 0), (r, 0.24, r), b.main)
    b.ball((0, 0.86, 0), 0.17, np.array((0.85, 0.05, 0.12)))


def hotdog(b: Builder) -> None:
    """A sausage in a bun with a line of mustard."""
    for s in (-1, 1):
        b.limb((-0.75, 0, s * 0.24), (0.75, 0, s * 0.24), 0.3, b.second)
    b.limb((-0.95, 0.18, 0), (0.95, 0.18, 0), 0.24, b.main)
    for k in range(6):
        x = -0.75 + 0.3 * k
        b.limb((x - 0.15, 0.43, -0.1 * (-1) ** k), (x + 0.15, 0.43, 0.1 * (-1) ** k), 0.06, np.array((1.0, 0.85, 0.1)))


KITCHEN = {
    "mug": Category(mug, ("mug", "cup"), "handle", None, -30, patterns=("striped", "dotted"), small=True),
    "bottle": Category(bottle, ("bottle",), "cap", "white", 0, ("green",), small=True),
    "teapot": Category(teapot, ("teapot",), "lid and handle", None, 20, ("white",), ("striped", "dotted"), small=True),
    "vase": Category(vase, ("vase",), "rim", None, 15, patterns=("striped", "dotted"), small=True),
    "goblet": Category(goblet, ("goblet", "chalice"), "stem", None, 0, ("gold",)),
    "bucket": Category(bucket, ("bucket", "pail"), "handle", "gray", 25, patterns=("striped", "dotted")),
    "barrel": Category(barrel, ("barrel", "keg"), "hoops", "gray", 0, ("brown",), wooden=True),
    "cake": Category(cake, ("cake", "birthday cake"), "icing", "white", 0, small=True),
    "icecream": Category(icecream, ("ice cream", "ice cream cone"), "cone", "beige", 0),
    "donut": Category(donut, ("donut", "doughnut"), "dough", "beige", 0, ("pink", "brown"), small=True),
    "apple": Category(apple, ("apple",), "leaf", "green", 10, ("red", "green"), small=True),
    "banana": Category(banana, ("banana",), "tips", "brown", 15, ("yellow",)),
    "pumpkin": Category(pumpkin, ("pumpkin", "jack-o'-lantern"), "stem", "green", 15, ("orange",), small=True),
    "strawberry": Category(strawberry, ("strawberry",), "leaves", "green", 0, ("red",), small=True),
    "pizza": Category(pizza, ("pizza",), "toppings", "red", 0, ("yellow",)),
    "hamburger": Category(hamburger, ("hamburger", "burger"), "lettuce", "green", 0, ("orange",)),
    "cupcake": Category(cupcake, ("cupcake", "muffin"), "cup", "beige", 0, ("pink",), small=True),
    "hotdog": Category(hotdog, ("hot dog",), "bun", "beige", 25, ("red", "brown")),
}
