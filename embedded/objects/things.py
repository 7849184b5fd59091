"""Vehicles (driving towards +X), tools, clothes and toys."""

from __future__ import annotations

import math

import numpy as np

from .build import Builder, turn
from .category import Category
from .palette import CREAM, DARK, GLASS, STEEL, WINDOW, WOOD

LIGHT = np.array((1.0, 0.9, 0.5))


def _wheels(b: Builder, xs, z: float, y: float, radius: float, color, hub=STEEL) -> None:
    for x in xs:
        for s in (-1, 1):
            b.tube((x, y, s * z), 0.15, radius, color, rot=(90, 0, 0), r=0.05)
            b.tube((x, y, s * (z + 0.04)), 0.15, radius * 0.45, hub, rot=(90, 0, 0))


def car(b: Builder) -> None:
    """A saloon, a hatchback or a long cab."""
    cab, at = b.u(0.55, 0.75), b.u(-0.25, -0.05)
    high = b.u(0.26, 0.34)
    b.box((0, 0, 0), (1.25, 0.28, 0.58), b.main, r=0.14)
    b.box((at, 0.28 + high * 0.8, 0), (cab, high, 0.5), b.main, r=0.16)
    b.box((at, 0.3 + high * 0.8, 0), (cab * 0.78, high * 0.58, 0.53), WINDOW, r=0.05)
    b.box((at, 0.3 + high * 0.8, 0), (cab + 0.03, high * 0.58, 0.4), WINDOW, r=0.05)
    _wheels(b, (-0.72, 0.74), 0.5, -0.26, 0.31, b.second)
    for s in (-1, 1):
        b.ball((1.18, 0.04, s * 0.36), (0.1, 0.11, 0.14), LIGHT)
        b.box((-1.22, 0.04, s * 0.38), (0.06, 0.08, 0.13), np.array((0.8, 0.05, 0.05)))


def truck(b: Builder) -> None:
    """A cab with a big box behind it."""
    long, high = b.u(0.85, 1.05), b.u(0.55, 0.7)
    b.box((-0.1, -0.42, 0), (1.5, 0.12, 0.48), DARK)
    b.box((-1.45 + long, -0.3 + high, 0), (long, high, 0.62), b.second, r=0.03)
    front = -1.45 + 2 * long + 0.46
    b.box((front, 0.06, 0), (0.4, 0.5, 0.56), b.main, r=0.1)
    b.box((front + 0.36, 0.24, 0), (0.08, 0.2, 0.46), WINDOW)
    b.box((front + 0.06, 0.24, 0), (0.22, 0.19, 0.59), WINDOW)
    b.box((front + 0.38, -0.22, 0), (0.07, 0.1, 0.4), STEEL)
    _wheels(b, (-1.0, -0.45, front), 0.5, -0.52, 0.32, DARK)


def bus(b: Builder) -> None:
    """A long box with a band of windows."""
    long, high = b.u(1.3, 1.55), b.u(0.55, 0.65)
    b.box((0, 0.1, 0), (long, high, 0.55), b.main, r=0.1)
    n = int(b.rng.integers(4, 6))
    for k in range(n):
        x = (2 * k + 1) / n * long * 0.92 - long * 0.92
        b.box((x, 0.3, 0), (long * 0.72 / n, 0.2, 0.58), WINDOW, r=0.02)
    b.box((long, 0.26, 0), (0.04, 0.26, 0.44), WINDOW)
    b.box((-0.02, -0.14, 0), (long + 0.02, 0.08, 0.575), b.second, r=0.01)
    for s in (-1, 1):
        b.ball((long, -0.2, s * 0.36), (0.07, 0.1, 0.1), LIGHT)
    _wheels(b, (-long * 0.6, long * 0.6), 0.46, -0.48, 0.3, DARK)


def train(b: Builder) -> None:
    """A steam engine: boiler, chimney, cab and many wheels."""
    b.box((-0.1, -0.3, 0), (1.2, 0.12, 0.46), b.second)
    b.tube((0.3, 0.1, 0), 0.8, 0.38, b.main, rot=(0, 0, 90), r=0.05)
    b.tube((1.1, 0.1, 0), 0.06, 0.3, DARK, rot=(0, 0, 90))
    b.box((-0.85, 0.3, 0), (0.4, 0.62, 0.5), b.main)
    b.box((-0.85, 0.52, 0), (0.22, 0.22, 0.53), WINDOW)
    b.box((-0.85, 0.96, 0), (0.5, 0.09, 0.58), b.second)
    b.cone((0.8, 0.66, 0), 0.28, 0.15, 0.27, b.second)
    b.dome((0.2, 0.4, 0), (0.2, 0.32, 0.2), b.second)
    b.pyramid((1.28, -0.62, 0), (0.3, 0.45, 0.45), b.second)
    for x, r in ((-0.85, 0.32), (-0.2, 0.32), (0.35, 0.24), (0.85, 0.24)):
        for s in (-1, 1):
            b.tube((x, -0.62 + r, s * 0.46), 0.1, r, DARK, rot=(90, 0, 0))
            b.tube((x, -0.62 + r, s * 0.48), 0.1, r * 0.5, np.array((0.75, 0.2, 0.15)), rot=(90, 0, 0))


def boat(b: Builder) -> None:
    """A sailing boat with a mainsail and sometimes a jib."""
    high = b.u(1.15, 1.45)
    b.ball((0, -0.1, 0), (1.15, 0.55, 0.5), b.main)
    b.box((0, 0.4, 0), (1.4, 0.4, 0.8), b.main * 0.72, cut=True)
    b.tube((0.1, high / 2 + 0.05, 0), high / 2 + 0.15, 0.08, WOOD)
    b.prism((0.02, 0.2, 0.0), (0.85, high, 0.06), b.second)
    b.box((0.9 + 0.05, 0.2 + high / 2, 0), (0.85, high, 0.4), b.second, cut=True)
    if b.chance(0.6):
        b.prism((0.2, 0.2, 0.0), (0.62, high * 0.75, 0.06), b.second * 0.93)
        b.box((-0.72 + 0.2, 0.2 + high / 2, 0), (0.72, high, 0.4), b.second, cut=True)


def plane(b: Builder) -> None:
    """An airliner: round body, swept wings, fin, engines."""
    b.limb((-0.95, 0, 0), (0.95, 0, 0), 0.27, b.main)
    for s in (-1, 1):
        b.box((-0.05, -0.08, s * 0.65), (0.28, 0.07, 0.62), b.second, rot=(0, s * 22, 0))
        b.box((-1.05, 0.1, s * 0.32), (0.17, 0.06, 0.34), b.second, rot=(0, s * 22, 0))
        b.tube((0.18, -0.24, s * 0.55), 0.22, 0.13, STEEL, rot=(0, 0, 90))
    b.box((-1.0, 0.42, 0), (0.2, 0.36, 0.065), b.second, rot=(0, 0, 22))
    b.ball((1.0, 0.1, 0), (0.17, 0.13, 0.2), WINDOW)
    for k in range(5):
        b.box((-0.6 + 0.3 * k, 0.07, 0), (0.07, 0.06, 0.275), WINDOW, r=0.01)


def rocket(b: Builder) -> None:
    """A body with a pointed nose, a porthole, fins and a flame."""
    h, r = b.u(0.6, 0.8), b.u(0.36, 0.44)
    b.tube((0, 0, 0), h, r, b.main, r=0.05)
    b.cone((0, h + 0.38, 0), 0.4, r, 0.03, b.second)
    for k in range(4):
        a = 45 + 90 * k
        s, c = math.sin(math.radians(a)), math.cos(math.radians(a))
        b.box((c * (r + 0.18), -h + 0.1, s * (r + 0.18)), (0.22, 0.3, 0.08), b.second, rot=(0, -a, -18))
    b.tube((0, 0.25, r - 0.05), 0.1, 0.24, b.second, rot=(90, 0, 0))
    b.ball((0, 0.25, r + 0.03), (0.17, 0.17, 0.1), GLASS)
    if b.chance(0.5):
        b.cone((0, -h - 0.28, 0), 0.28, 0.05, 0.27, np.array((1.0, 0.6, 0.08)))
    else:
        b.cone((0, -h - 0.08, 0), 0.1, 0.3, 0.22, STEEL)


def balloon(b: Builder) -> None:
    """A hot-air balloon: envelope in segments, ropes, basket."""
    b.ball((0, 0.45, 0), (0.85, 0.85, 0.85), b.main, sectors=(int(b.rng.integers(4, 7)), b.second))
    b.cone((0, -0.4, 0), 0.26, 0.22, 0.6, b.main, sectors=(5, b.second))
    for x in (-0.17, 0.17):
        for z in (-0.17, 0.17):
            b.limb((x, -0.6, z), (x, -1.0, z), 0.045, DARK)
    b.box((0, -1.12, 0), (0.27, 0.2, 0.27), WOOD * 1.25, r=0.06)


def robot(b: Builder) -> None:
    """A box body with a box head, aerial, arms and legs."""
    wide = b.u(0.46, 0.58)
    b.box((0, 0, 0), (wide, 0.52, 0.36), b.main, r=0.08)
    b.box((0, 0.85, 0), (0.4, 0.3, 0.33), b.main, r=0.08)
    b.box((0, 0.05, 0.33), (0.26, 0.22, 0.07), b.second)
    for s in (-1, 1):
        b.ball((s * 0.17, 0.92, 0.31), (0.11, 0.11, 0.07), LIGHT)
        b.limb((s * (wide + 0.14), 0.35, 0), (s * (wide + 0.25), -0.35, 0.12), 0.14, b.second)
        b.ball((s * (wide + 0.26), -0.5, 0.15), 0.18, b.second)
        b.limb((s * 0.26, -0.6, 0), (s * 0.26, -1.02, 0), 0.16, b.second)
        b.box((s * 0.27, -1.15, 0.08), (0.21, 0.11, 0.3), b.second)
    b.box((0, 0.7, 0.33), (0.22, 0.06, 0.05), DARK)
    b.tube((0, 1.25, 0), 0.18, 0.065, b.second)
    b.ball((0, 1.48, 0), 0.13, np.array((0.9, 0.15, 0.1)))


def sword(b: Builder) -> None:
    """Blade, guard, grip and pommel."""
    long, wide = b.u(0.85, 1.05), b.u(0.14, 0.18)
    b.box((0, long - 0.4, 0), (wide, long, 0.07), b.main, r=0.06)
    b.pyramid((0, 2 * long - 0.42, 0), (wide, 0.32, 0.07), b.main)
    b.box((0, -0.42, 0), (0.5, 0.11, 0.15), b.second)
    b.tube((0, -0.75, 0), 0.28, 0.11, b.second * 0.65)
    b.ball((0, -1.08, 0), 0.18, b.second)


def hammer(b: Builder) -> None:
    """A steel head with a claw or a second face, on a handle."""
    b.tube((0, -0.35, 0), 0.95, 0.12, b.second, r=0.05)
    b.box((0.05, 0.68, 0), (0.4, 0.2, 0.2), b.main, r=0.05)
    b.tube((0.55, 0.68, 0), 0.16, 0.27, b.main, rot=(0, 0, 90))
    if b.chance(0.6):
        for s in (-1, 1):
            b.limb((-0.3, 0.72, s * 0.1), (-0.78, 0.5, s * 0.15), 0.13, b.main, tip=0.07)
    else:
        b.tube((-0.45, 0.68, 0), 0.16, 0.27, b.main, rot=(0, 0, 90))


def umbrella(b: Builder) -> None:
    """An open canopy in segments, a stick with a crook."""
    deep = b.u(0.55, 0.75)
    b.shell((0, 0.25, 0), (1.05, deep, 1.05), 0.05, b.main, sectors=(6, b.main * 0.6 + 0.4) if b.chance(0.5) else None)
    b.tube((0, -0.2, 0), 0.85, 0.08, b.second)
    b.tube((0, deep + 0.3, 0), 0.12, 0.06, b.second)
    b.arc((0.18, -1.03, 0), 0.18, 0.085, 95, b.second, rot=(0, 0, 180))


def top_hat(b: Builder) -> None:
    """A wide brim, a high crown, a ribbon."""
    h = b.u(0.45, 0.6)
    b.disc((0, -0.42, 0), (1.0, 0.08, 0.9), b.main, r=0.05)
    b.cone((0, h - 0.4, 0), h, 0.56, b.u(0.56, 0.66), b.main)
    b.tube((0, -0.2, 0), 0.15, 0.605, b.second)


def sombrero(b: Builder) -> None:
    """A very wide brim turned up at its edge, a pointed crown, a band."""
    b.cone((0, -0.1, 0), 0.13, 0.9, 1.12, b.main)
    b.cone((0, 0.05, 0), 0.13, 0.8, 1.05, b.main * 0.9, cut=True)
    b.torus((0, 0.02, 0), 1.08, 0.1, b.second)
    b.cone((0, 0.3, 0), 0.45, 0.48, 0.2, b.main, r=0.12)
    b.tube((0, 0.06, 0), 0.12, 0.5, b.second)


def gift(b: Builder) -> None:
    """A box with a cross of ribbon and a bow."""
    w, h = b.u(0.6, 0.8), b.u(0.45, 0.7)
    b.box((0, 0, 0), (w, h, w), b.main)
    b.box((0, 0, 0), (0.15, h + 0.03, w + 0.03), b.second, r=0.01)
    b.box((0, 0, 0), (w + 0.03, h + 0.03, 0.15), b.second, r=0.01)
    for s in (-1, 1):
        b.torus((s * 0.27, h + 0.2, 0), 0.2, 0.1, b.second, rot=(90, 0, 0))
    b.ball((0, h + 0.12, 0), 0.15, b.second)


def star(b: Builder) -> None:
    """A five-pointed star on a stand: a trophy."""
    b.star((0, 0.32, 0), 0.85, 0.18, b.main, inner=b.u(0.42, 0.5))
    b.tube((0, -0.55, 0), 0.25, 0.11, b.second)
    b.box((0, -0.85, 0), (0.5, 0.13, 0.34), b.second)


def heart(b: Builder) -> None:
    """A thick heart on a stand."""
    b.heart((0, 0.2, 0), b.u(1.25, 1.4), 0.26, b.main, r=0.16)
    b.tube((0, -0.68, 0), 0.2, 0.1, b.second)
    b.box((0, -0.9, 0), (0.42, 0.11, 0.3), b.second)


def ball(b: Builder) -> None:
    """A beach ball in segments, or banded."""
    tilt = (b.u(-25, 25), 0, b.u(-25, 25))
    if b.chance(0.75):
        b.ball((0, 0, 0), 0.8, b.main, rot=tilt, sectors=(int(b.rng.integers(4, 7)), b.second))
        for s in (-1, 1):
            y = turn(*tilt)[:, 1] * 0.72 * s
            b.ball(y, (0.2, 0.1, 0.2), b.main, rot=tilt)
    else:
        b.ball((0, 0, 0), 0.8, b.main, bands=(0.42, b.second, 1, 0.5))


def drum(b: Builder) -> None:
    """A shell with pale skin, rims and sticks across the top."""
    h = b.u(0.45, 0.6)
    b.tube((0, 0, 0), h, 0.82, b.main)
    for s in (-1, 1):
        b.tube((0, s * h, 0), 0.1, 0.88, b.second)
    b.tube((0, h + 0.04, 0), 0.09, 0.78, CREAM)
    if b.chance(0.75):
        b.limb((-0.6, h + 0.2, 0.35), (0.7, h + 0.24, -0.1), 0.07, WOOD)
        b.limb((0.55, h + 0.32, 0.5), (-0.5, h + 0.3, -0.35), 0.07, WOOD)


def ghost(b: Builder) -> None:
    """A hood that ends in waves, with eyes and a mouth."""
    b.limb((0, -0.35, 0), (0, 0.45, 0), 0.58, b.main)
    b.cone((0, -0.5, 0), 0.35, 0.7, 0.58, b.main)
    for k in range(7):
        a = 2 * math.pi * (k + 0.25) / 7
        b.ball((0.5 * math.sin(a), -0.88, 0.5 * math.cos(a)), (0.25, 0.26, 0.25), b.main)
    for s in (-1, 1):
        b.ball((s * 0.22, 0.55, 0.5), (0.11, 0.16, 0.1), b.second)
        b.limb((s * 0.5, 0.1, 0.15), (s * 0.85, 0.2, 0.35), 0.16, b.main)
    b.ball((0, 0.2, 0.57), (0.11, 0.13, 0.08), b.second)


def crown(b: Builder) -> None:
    """A ring with spikes and jewels."""
    n = 6
    b.tube((0, -0.3, 0), 0.3, 0.8, b.main)
    b.tube((0, -0.05, 0), 0.4, 0.64, b.main * 0.6, cut=True)
    b.torus((0, -0.55, 0), 0.8, 0.12, b.main)
    for k in range(n):
        a = 360 * (k + 0.5) / n
        s, c = math.sin(math.radians(a)), math.cos(math.radians(a))
        b.pyramid((0.72 * s, -0.05, 0.72 * c), (0.27, 0.6, 0.09), b.main, rot=(0, a, 0))
        b.ball((0.72 * s, 0.58, 0.72 * c), 0.12, b.second)
        b.ball((0.8 * s, -0.24, 0.8 * c), 0.12, b.second)


THINGS = {
    "car": Category(car, ("car",), "wheels", "black", -35),
    "truck": Category(truck, ("truck",), "trailer", "white", -38),
    "bus": Category(bus, ("bus", "school bus"), "stripe", "black", -38, ("yellow",)),
    "train": Category(train, ("steam train", "locomotive"), "chimney", "black", -35),
    "boat": Category(boat, ("sailboat", "boat"), "sails", "white", -25),
    "plane": Category(plane, ("airplane", "plane"), "wings", None, -40, ("white",)),
    "rocket": Category(rocket, ("rocket", "spaceship"), "fins", "red", 20, ("white",), ("striped",), small=True),
    "balloon": Category(balloon, ("hot air balloon",), "stripes", "white", 10, stretch=False),
    "robot": Category(robot, ("robot",), "arms and legs", "gray", 22, ("gray",), small=True),
    "sword": Category(sword, ("sword",), "hilt", "gold", 10, ("gray",)),
    "hammer": Category(hammer, ("hammer",), "handle", "brown", 15, ("gray",)),
    "umbrella": Category(umbrella, ("umbrella",), "handle", "brown", 0, patterns=("dotted",)),
    "tophat": Category(top_hat, ("top hat", "hat"), "band", "red", 0, ("black",), small=True),
    "sombrero": Category(sombrero, ("sombrero", "mexican hat"), "band", "red", 0, ("yellow", "beige")),
    "gift": Category(gift, ("gift box", "present"), "ribbon", "gold", 25, ("red",), ("dotted",), small=True),
    "star": Category(star, ("star trophy", "star"), "stand", "brown", 20, ("gold", "yellow")),
    "heart": Category(heart, ("heart",), "stand", "gold", 20, ("red",)),
    "ball": Category(ball, ("ball", "beach ball"), "stripes", "white", 15, small=True, stretch=False),
    "drum": Category(drum, ("drum",), "rims", "gold", 15),
    "ghost": Category(ghost, ("ghost",), "eyes", "black", 18, ("white",)),
    "crown": Category(crown, ("crown",), "jewels", "red", 10, ("gold",)),
}
