"""Plants, animals, buildings and street furniture. Front towards +Z."""

from __future__ import annotations

import math

import numpy as np

from .build import Builder
from .category import Category
from .palette import CREAM, DARK, GLASS, LEAF, ORANGE, WHITE, WOOD

CLOTH = np.array(((0.85, 0.1, 0.1), (0.12, 0.3, 0.85), (0.98, 0.85, 0.1), (0.12, 0.6, 0.2)))  # scarves and ties


def tree(b: Builder) -> None:
    """A trunk under a crown of several balls."""
    r = b.u(0.6, 0.78)
    b.cone((0, -0.7, 0), 0.6, 0.22, 0.16, b.second)
    b.ball((0, 0.25, 0), (r, r * 0.85, r), b.main)
    for k in range(4):
        a = k * math.pi / 2 + b.u(0, 0.8)
        s = b.u(0.36, 0.46)
        b.ball((0.5 * math.cos(a), b.u(-0.05, 0.25), 0.5 * math.sin(a)), s, b.main * (0.9 + 0.05 * (k % 3)))
    b.ball((0.05, 0.7, 0), (0.46, 0.4, 0.46), b.main)
    if b.chance(0.2):
        for k in range(7):
            a, y = k * 2.4, 0.5 - 0.12 * k
            b.ball((0.78 * math.cos(a), y, 0.78 * math.sin(a)), 0.11, np.array((0.85, 0.1, 0.1)))


def pine(b: Builder) -> None:
    """Three or four cones, sometimes with a star and baubles."""
    n = int(b.rng.integers(3, 5))
    b.tube((0, -1.02, 0), 0.34, 0.2, b.second)
    for k in range(n):
        b.cone((0, -0.4 + 0.44 * k, 0), 0.36, 0.78 - 0.15 * k, 0.1, b.main)
    if b.chance(0.35):
        b.star((0, 0.44 * n - 0.35, 0), 0.26, 0.08, np.array((1.0, 0.82, 0.15)))
        hues = ((0.85, 0.1, 0.1), (0.98, 0.8, 0.1), (0.15, 0.35, 0.9))
        for k in range(9):
            a, level = k * 2.1, k % 3
            r = 0.74 - 0.15 * level
            b.ball((r * math.cos(a), -0.66 + 0.44 * level, r * math.sin(a)), 0.1, hues[k % 3])


def cactus(b: Builder) -> None:
    """A column with one to three arms, in a pot."""
    high = b.u(0.6, 0.9)
    b.limb((0, -0.4, 0), (0, high, 0), 0.29, b.main)
    for s, y, up in ((1, b.u(-0.05, 0.15), b.u(0.35, 0.55)), (-1, b.u(0.15, 0.3), b.u(0.3, 0.45)))[
        : 1 + int(b.chance(0.8))
    ]:
        b.limb((s * 0.2, y, 0), (s * 0.6, y, 0), 0.16, b.main)
        b.limb((s * 0.6, y, 0), (s * 0.6, y + up, 0), 0.16, b.main)
    b.cone((0, -0.75, 0), 0.32, 0.4, 0.52, b.second)
    b.tube((0, -0.48, 0), 0.1, 0.58, b.second)
    if b.chance(0.3):
        b.ball((0, high + 0.28, 0), (0.16, 0.12, 0.16), np.array((0.95, 0.35, 0.6)))


def flower(b: Builder) -> None:
    """Petals round a centre, on a stem with two leaves."""
    n, long = int(b.rng.integers(5, 9)), b.u(0.28, 0.36)
    b.limb((0, -1.0, -0.05), (0, 0.4, -0.05), 0.085, LEAF)
    b.ball((0.3, -0.45, 0), (0.32, 0.1, 0.16), LEAF, rot=(0, 0, 32))
    b.ball((-0.28, -0.7, 0), (0.3, 0.1, 0.16), LEAF * 0.95, rot=(0, 0, 148))
    for k in range(n):
        a = 2 * math.pi * k / n + 0.2
        wide = min(0.24, 1.5 / n)
        at = ((0.15 + long) * math.cos(a), 0.55 + (0.15 + long) * math.sin(a), 0)
        b.ball(at, (long, wide, 0.11), b.main * (1.0 - 0.06 * (k % 2)), rot=(0, 0, math.degrees(a)))
    b.ball((0, 0.55, 0.04), (0.24, 0.24, 0.16), b.second)


def mushroom(b: Builder) -> None:
    """A dome with dots on a stem."""
    wide, high = b.u(0.85, 1.0), b.u(0.6, 0.85)
    b.cone((0, -0.45, 0), 0.5, 0.38, 0.27, b.second, r=0.08)
    b.tube((0, -0.04, 0), 0.05, wide * 0.97, b.second * 0.92)
    if b.chance(0.6):
        b.dome((0, 0, 0), (wide, high, wide), b.main, dots=(0.36, WHITE))
    else:
        b.dome((0, 0, 0), (wide, high, wide), b.main)


def snowman(b: Builder) -> None:
    """Three balls, carrot, buttons, arms and a top hat."""
    b.ball((0, -0.65, 0), (0.64, 0.57, 0.64), b.main)
    b.ball((0, 0.12, 0), (0.47, 0.43, 0.47), b.main)
    b.ball((0, 0.72, 0), (0.36, 0.34, 0.36), b.main)
    b.limb((0, 0.72, 0.3), (0, 0.68, 0.68), 0.11, ORANGE, tip=0.03)
    for x in (-0.14, 0.14):
        b.ball((x, 0.84, 0.29), 0.075, DARK)
    for y in (0.02, 0.24):
        b.ball((0, y, 0.45), 0.08, DARK)
    for s in (-1, 1):
        b.limb((s * 0.4, 0.2, 0), (s * 0.85, 0.48, 0.05), 0.065, WOOD)
    b.tube((0, 1.02, 0), 0.06, 0.46, b.second)
    b.tube((0, 1.28, 0), 0.26, 0.3, b.second)
    if b.chance(0.4):
        b.torus((0, 0.45, 0), 0.34, 0.11, b.second)


def penguin(b: Builder) -> None:
    """An upright body with a pale belly, flippers, beak and feet."""
    fat = b.u(0.5, 0.6)
    b.ball((0, -0.2, 0), (fat, 0.78, 0.5), b.main)
    b.ball((0, -0.25, 0.16), (fat * 0.74, 0.62, 0.4), b.second)
    b.ball((0, 0.62, 0.02), (0.4, 0.38, 0.38), b.main)
    for s in (-1, 1):
        b.ball((s * 0.15, 0.62, 0.26), (0.15, 0.17, 0.12), WHITE)
        b.ball((s * 0.14, 0.65, 0.36), 0.075, DARK)
        b.ball((s * (fat + 0.05), -0.1, 0), (0.11, 0.48, 0.22), b.main, rot=(0, 0, s * 18))
        b.ball((s * 0.24, -0.95, 0.18), (0.2, 0.09, 0.3), ORANGE)
    b.limb((0, 0.5, 0.34), (0, 0.47, 0.6), 0.11, ORANGE, tip=0.04)
    if b.chance(0.3):
        b.torus((0, 0.32, 0.03), 0.38, 0.13, CLOTH[b.rng.integers(len(CLOTH))])


def duck(b: Builder) -> None:
    """A bath duck, swimming towards +X."""
    b.ball((-0.1, -0.2, 0), (0.85, 0.48, 0.6), b.main)
    b.limb((-0.75, -0.05, 0), (-1.05, 0.3, 0), 0.25, b.main, tip=0.1)
    b.ball((0.42, 0.45, 0), (0.44, 0.42, 0.42), b.main)
    b.ball((0.88, 0.38, 0), (0.26, 0.1, 0.22), b.second)
    for s in (-1, 1):
        b.ball((0.68, 0.58, s * 0.28), 0.085, DARK)
        b.ball((-0.2, -0.1, s * 0.5), (0.46, 0.28, 0.2), b.main * 0.92, rot=(0, 0, 10))


def teddy(b: Builder) -> None:
    """A sitting bear with round ears, pale muzzle, belly and soles."""
    b.ball((0, -0.25, 0), (0.55, 0.6, 0.48), b.main)
    b.ball((0, -0.22, 0.2), (0.36, 0.42, 0.34), b.second)
    b.ball((0, 0.6, 0.03), (0.5, 0.44, 0.43), b.main)
    b.ball((0, 0.5, 0.36), (0.22, 0.18, 0.18), b.second)
    b.ball((0, 0.57, 0.53), (0.1, 0.075, 0.06), DARK)
    for s in (-1, 1):
        b.ball((s * 0.2, 0.7, 0.38), 0.08, DARK)
        b.ball((s * 0.42, 0.94, 0), (0.2, 0.2, 0.12), b.main)
        b.ball((s * 0.42, 0.94, 0.09), (0.11, 0.11, 0.06), b.second)
        b.limb((s * 0.45, 0.1, 0.05), (s * 0.78, -0.28, 0.2), 0.19, b.main)
        b.limb((s * 0.35, -0.65, 0.1), (s * 0.5, -0.68, 0.62), 0.23, b.main)
        b.ball((s * 0.51, -0.68, 0.78), (0.16, 0.16, 0.1), b.second)
    if b.chance(0.35):
        tie = CLOTH[b.rng.integers(len(CLOTH))]
        for s in (-1, 1):
            b.ball((s * 0.16, 0.2, 0.44), (0.18, 0.13, 0.1), tie, rot=(0, 0, s * 15))


def fish(b: Builder) -> None:
    """A flat oval swimming towards +X, with tail, fins and a big eye; sometimes banded."""
    high = b.u(0.45, 0.62)
    bands = (0.42, b.second, 0, b.u(0, 1)) if b.chance(0.4) else None
    b.ball((0.1, 0, 0), (0.85, high, 0.3), b.main, bands=bands)
    for s in (-1, 1):
        b.limb((-0.65, s * 0.02, 0), (-1.15, s * 0.38, 0), 0.1, b.second, tip=0.17)
        b.ball((0.58, 0.12, s * 0.2), (0.15, 0.15, 0.09), WHITE)
        b.ball((0.6, 0.12, s * 0.27), (0.085, 0.085, 0.06), DARK)
        b.ball((0.12, -0.12, s * 0.3), (0.24, 0.11, 0.08), b.second, rot=(0, -s * 25, 20))
    b.ball((0.0, high, 0), (0.42, 0.22, 0.09), b.second, rot=(0, 0, 10))
    b.ball((0.1, -high, 0), (0.22, 0.18, 0.08), b.second)


def snail(b: Builder) -> None:
    """A spiral shell on a foot with feelers, crawling towards +X."""
    b.limb((-0.95, -0.5, 0), (0.55, -0.5, 0), 0.12, b.second, tip=0.22)
    b.limb((0.55, -0.45, 0), (0.85, 0.0, 0), 0.22, b.second)
    for s in (-1, 1):
        b.limb((0.9, 0.05, s * 0.08), (1.05, 0.42, s * 0.2), 0.065, b.second)
        b.ball((1.05, 0.45, s * 0.2), 0.1, DARK)
    b.ball((-0.1, 0.05, 0), (0.62, 0.62, 0.4), b.main)
    for s in (-1, 1):
        b.torus((-0.1, 0.05, s * 0.24), 0.42, 0.09, b.main * 0.6, rot=(90, 0, 0))
        b.torus((-0.08, 0.03, s * 0.36), 0.18, 0.09, b.main * 0.6, rot=(90, 0, 0))


def rabbit(b: Builder) -> None:
    """A sitting rabbit with long ears."""
    up = b.u(0.45, 0.6)
    b.ball((0, -0.35, -0.05), (0.5, 0.58, 0.5), b.main)
    b.ball((0, 0.42, 0.08), (0.4, 0.38, 0.38), b.main)
    for s in (-1, 1):
        b.ball((s * 0.2, 0.75 + up, 0), (0.15, up, 0.12), b.main, rot=(0, 0, -s * 10))
        b.ball((s * 0.2, 0.75 + up, 0.08), (0.115, up * 0.86, 0.09), b.second, rot=(0, 0, -s * 10))
        b.ball((s * 0.17, 0.5, 0.38), 0.075, DARK)
        b.ball((s * 0.3, -0.82, 0.3), (0.2, 0.13, 0.36), b.main)
        b.limb((s * 0.22, -0.2, 0.38), (s * 0.18, -0.5, 0.55), 0.13, b.main)
    b.ball((0, 0.34, 0.45), (0.09, 0.07, 0.06), np.array((0.95, 0.45, 0.55)))
    b.ball((0, -0.5, -0.58), 0.2, WHITE)


def house(b: Builder) -> None:
    """Walls, gable roof, door, windows, often a chimney."""
    h, w, rise = b.u(0.45, 0.65), b.u(0.72, 0.9), b.u(0.55, 0.8)
    b.box((0, 0, 0), (w, h, 0.68), b.main, r=0.01)
    b.prism((0, h, 0), (w + 0.22, rise, 0.84), b.second)
    b.prism((0, h - 0.02, 0), (w * 0.9, rise * 0.8, 0.87), b.main, r=0.01)
    b.box((0, -h + 0.3, 0.66), (0.17, 0.3, 0.07), WOOD, r=0.01)
    for s in (-1, 1):
        b.box((s * 0.5, 0.05, 0.66), (0.15, 0.16, 0.06), GLASS, r=0.01)
        b.box((s * w, 0.05, 0.2 * s), (0.06, 0.17, 0.2), GLASS, r=0.01)
    if b.chance(0.6):
        b.box((-0.45 * w, h + rise * 0.75, -0.2), (0.14, 0.3, 0.14), np.array((0.55, 0.2, 0.15)))


def castle(b: Builder) -> None:
    """Four thick towers with pointed roofs or battlements, walls and a gate."""
    pointed = b.chance(0.65)
    high = b.u(0.6, 0.85)
    b.box((0, -0.15, 0), (0.72, 0.55, 0.6), b.main, r=0.01)
    b.tube((0, 0.4, -0.1), 0.55, 0.34, b.main * 0.95, r=0.01)
    b.cone((0, 1.25, -0.1), 0.34, 0.46, 0.03, b.second)
    for x in (-0.78, 0.78):
        for z in (-0.68, 0.68):
            b.tube((x, -0.7 + high, z), high, 0.3, b.main, r=0.01)
            if pointed:
                b.cone((x, -0.42 + 2 * high, z), 0.3, 0.4, 0.03, b.second)
            else:
                b.tube((x, -0.62 + 2 * high, z), 0.12, 0.36, b.second)
    for x in (-0.34, 0, 0.34):
        b.box((x, 0.47, 0.56), (0.1, 0.13, 0.08), b.main, r=0.01)
    b.box((0, -0.4, 0.6), (0.22, 0.3, 0.06), np.array((0.24, 0.14, 0.07)), r=0.01)
    b.tube((0, -0.12, 0.6), 0.06, 0.22, np.array((0.24, 0.14, 0.07)), rot=(90, 0, 0))


def lighthouse(b: Builder) -> None:
    """A banded tower with a lamp under a cap."""
    b.cone((0, -0.15, 0), 0.9, b.u(0.46, 0.56), 0.3, b.main, bands=(b.u(0.34, 0.45), b.second, 1, 0.3))
    b.tube((0, 0.78, 0), 0.07, 0.45, b.second * 0.8)
    b.tube((0, 0.95, 0), 0.18, 0.23, np.array((1.0, 0.92, 0.45)))
    b.cone((0, 1.28, 0), 0.18, 0.38, 0.04, b.main)
    b.tube((0, -1.08, 0), 0.08, 0.68, np.array((0.5, 0.5, 0.5)))


def windmill(b: Builder) -> None:
    """A tapering mill with a cap and four broad sails."""
    spin = b.u(10, 80)
    b.cone((0, -0.3, 0), 0.85, 0.6, 0.38, b.main)
    b.dome((0, 0.54, 0), (0.44, 0.4, 0.44), WOOD)
    b.box((0, -0.9, 0.56), (0.16, 0.26, 0.08), WOOD, rot=(-14, 0, 0))
    b.tube((0, 0.55, 0.45), 0.16, 0.1, DARK, rot=(90, 0, 0))
    for k in range(4):
        a = math.radians(spin + 90 * k)
        at = (-0.62 * math.sin(a), 0.55 + 0.62 * math.cos(a), 0.58)
        b.box(at, (0.17, 0.5, 0.06), b.second, rot=(0, 0, spin + 90 * k))


def mailbox(b: Builder) -> None:
    """A box with a round top on a post, with a flag."""
    b.box((0, 0.35, 0), (0.42, 0.3, 0.75), b.main)
    b.tube((0, 0.6, 0), 0.75, 0.42, b.main, rot=(90, 0, 0))
    b.box((0, 0.5, 0.74), (0.3, 0.32, 0.05), b.main * 0.75, r=0.04)
    b.ball((0, 0.62, 0.8), 0.09, CREAM)
    b.box((0, -0.65, 0), (0.15, 0.75, 0.15), WOOD)
    b.box((0.46, 0.85, 0.1), (0.06, 0.32, 0.08), b.second)
    b.box((0.46, 1.08, 0.24), (0.06, 0.14, 0.2), b.second)


def traffic_light(b: Builder) -> None:
    """Red, amber and green in a dark case on a pole."""
    b.box((0, 0.55, 0), (0.36, 0.85, 0.28), b.main)
    for y, hue in ((1.08, (0.95, 0.08, 0.06)), (0.55, (1.0, 0.75, 0.05)), (0.02, (0.05, 0.8, 0.2))):
        b.ball((0, y, 0.26), (0.23, 0.23, 0.1), np.array(hue))
        b.arc((0, y, 0.36), 0.25, 0.06, 75, b.main)
    b.tube((0, -0.9, 0), 0.75, 0.11, b.second)
    b.tube((0, -1.6, 0), 0.08, 0.42, b.second)


def traffic_cone(b: Builder) -> None:
    """A banded cone on a square foot."""
    b.cone((0, 0.1, 0), 0.82, 0.52, 0.1, b.main, bands=(b.u(0.36, 0.44), b.second, 1, 0.62))
    b.box((0, -0.74, 0), (0.74, 0.09, 0.74), b.main * 0.9, r=0.05)


OUTDOORS = {
    "tree": Category(tree, ("tree",), "trunk", "brown", 0, ("green",)),
    "pine": Category(pine, ("christmas tree", "pine tree"), "trunk", "brown", 20, ("green",)),
    "cactus": Category(cactus, ("cactus",), "pot", "orange", 20, ("green",), small=True),
    "flower": Category(flower, ("flower", "daisy"), "center", "yellow", 15),
    "mushroom": Category(mushroom, ("mushroom", "toadstool"), "stem", "beige", 0, ("red", "brown"), small=True),
    "snowman": Category(snowman, ("snowman",), "hat", "black", 18, ("white",)),
    "penguin": Category(penguin, ("penguin",), "belly", "white", 20, ("black",)),
    "duck": Category(duck, ("duck", "rubber duck"), "beak", "orange", -35, ("yellow",), small=True),
    "teddy": Category(teddy, ("teddy bear", "teddy"), "belly", "beige", 20, ("brown",), small=True),
    "fish": Category(fish, ("fish", "goldfish"), "fins", None, -25, ("orange", "gold")),
    "snail": Category(snail, ("snail",), "body", "beige", -28, ("brown",)),
    "rabbit": Category(rabbit, ("rabbit", "bunny"), "ears", "pink", 25, ("white", "gray"), small=True),
    "house": Category(house, ("house", "cottage"), "roof", "red", 30),
    "castle": Category(castle, ("castle",), "roofs", "red", 25, ("gray",)),
    "lighthouse": Category(lighthouse, ("lighthouse",), "stripes", "white", 0, ("red",)),
    "windmill": Category(windmill, ("windmill",), "sails", "white", 25),
    "mailbox": Category(mailbox, ("mailbox", "letter box"), "flag", "red", 32),
    "trafficlight": Category(traffic_light, ("traffic light",), "pole", "gray", 20, ("black",)),
    "trafficcone": Category(traffic_cone, ("traffic cone",), "stripes", "white", 20, ("orange",)),
}
