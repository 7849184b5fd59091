"""A builder that lists the primitives of one object, and the placement that fits the list into the unit view.

An object lives in its own frame, in any unit: Y up, front towards +Z (vehicles: towards +X). Each call adds one row
for march.cpp. A row that is `cut` is taken away from the solids of the same group; every other row opens a new group
unless it says `join`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

ROW = 40  # floats of a primitive: struct Prim in march.cpp
ELLIPSOID, BOX, CONE, TORUS, CAPSULE, DOME, PRISM, PYRAMID, SHELL, STAR, ARC, HEART, DISC = range(13)
PLAIN, BANDS, SECTORS, DOTS = range(4)
RADIUS = 0.445  # of the sphere about the origin that holds every object: no view within 60 degrees of tilt crops it
PATTERN_STEP = {BANDS: 0.085, DOTS: 0.15}  # world units: a band is 5 pixels of 64, a dot 6

_turns = np.linspace(0, 2 * math.pi, 24, endpoint=False)
_CIRCLE = np.stack([np.cos(_turns), np.zeros(24), np.sin(_turns)], 1)
_SPHERE = np.concatenate(
    [np.stack([_CIRCLE[:, 0] * math.cos(e), np.full(24, math.sin(e)), _CIRCLE[:, 2] * math.cos(e)], 1)
     for e in np.radians((-90, -67.5, -45, -22.5, 0, 22.5, 45, 67.5, 90))]
)  # fmt: skip
_CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)


def turn(rx: float = 0, ry: float = 0, rz: float = 0) -> np.ndarray:
    """The rotation (3, 3) by rz about Z, then rx about X, then ry about Y; degrees."""
    (a, b, c), (s, t, u) = np.cos(np.radians((rx, ry, rz))), np.sin(np.radians((rx, ry, rz)))
    return np.array(
        [
            [b * c + t * s * u, -b * u + t * s * c, t * a],
            [a * u, a * c, -s],
            [-t * c + b * s * u, t * u + b * s * c, b * a],
        ]
    )


def _hull(kind: int, a: tuple[float, ...], r: float) -> np.ndarray:
    """Points (n, 3) whose convex hull holds the primitive, up to two per cent, in its own frame."""
    if kind == ELLIPSOID:
        return _SPHERE * a[:3]
    if kind == BOX:
        return _CORNERS * (np.array(a[:3]) - r * (1 - 1 / math.sqrt(3)))
    if kind == CONE:
        return np.concatenate([_CIRCLE * a[1] - (0, a[0], 0), _CIRCLE * a[2] + (0, a[0], 0)])
    if kind == DISC:
        return np.concatenate([_CIRCLE * (a[0], 0, a[2]) + (0, y, 0) for y in (-a[1], a[1])])
    if kind == TORUS:
        tube = [(a[1] * math.cos(e), a[1] * math.sin(e)) for e in np.radians((-90, -45, 0, 45, 90))]
        return np.concatenate([_CIRCLE * (a[0] + x) + (0, y, 0) for x, y in tube])
    if kind == CAPSULE:
        return np.concatenate([_SPHERE * a[1] - (0, a[0], 0), _SPHERE * a[2] + (0, a[0], 0)])
    if kind in (DOME, SHELL):
        extra = a[3] if kind == SHELL else 0.0
        return _SPHERE[24 * 4 :] * (np.array(a[:3]) + extra)
    if kind == PRISM:
        return np.array([(x, y, z) for x, y in ((-a[0], 0), (a[0], 0), (0, a[1])) for z in (-a[2], a[2])])
    if kind == PYRAMID:
        return np.array([(x, 0, z) for x in (-a[0], a[0]) for z in (-a[2], a[2])] + [(0, a[1], 0)])
    if kind == STAR:
        angle = 2 * math.pi / a[1] * np.arange(int(a[1]))
        return np.stack(
            [np.tile(f(angle) * a[0], 2) for f in (np.sin, np.cos)] + [np.repeat((-a[2], a[2]), len(angle))], 1
        )
    if kind == ARC:
        angle = np.linspace(-a[2], a[2], 13)
        ring = np.stack([np.sin(angle), np.cos(angle), 0 * angle], 1) * a[0]
        return (ring[:, None] + np.concatenate([np.eye(3), -np.eye(3)]) * a[1]).reshape(-1, 3)
    flat = (
        np.concatenate([(_CIRCLE[:, ::2] * 0.3536 + (s * 0.25, 0.2)) for s in (-1, 1)] + [np.array([(0, -0.55)])])
        * a[0]
    )
    return np.concatenate([np.c_[flat, np.full(len(flat), z)] for z in (-a[1], a[1])])


@dataclass
class Builder:
    """Collects primitives. `main` is the object's colour, `second` that of the part that captions may name."""

    rng: np.random.Generator
    main: np.ndarray
    second: np.ndarray
    pattern: int = PLAIN  # drawn on every primitive in the main colour, in the colour `ink`
    ink: np.ndarray = field(default_factory=lambda: np.ones(3))
    across: int = 1  # the axis of the object that stripes run across
    rows: list[np.ndarray] = field(default_factory=list)
    group: int = 0

    def u(self, low: float, high: float) -> float:
        """A uniform draw."""
        return float(self.rng.uniform(low, high))

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return bool(self.rng.random() < p)

    def add(
        self, kind, at, a, color, rot=None, r=0.0, cut=False, join=False, bands=None, sectors=None, dots=None
    ) -> None:
        """Append a primitive.

        Args:
            kind: One of the kinds above.
            at: Position of its own origin.
            a: Its measures, as in march.cpp.
            color: (3,), in [0, 1].
            rot: (3, 3) own frame to object frame, or degrees for `turn`; None is no rotation.
            r: Rounding of the edges, inside the measures.
            cut: Take it away from the group instead.
            join: Stay in the group of the row before.
            bands: (period, other colour[, axis 0..2[, phase]]): stripes across an axis of the object.
            sectors: (number, other colour): segments around the primitive's own Y.
            dots: (spacing, other colour): dots on the surface.
        """
        if not (cut or join):
            self.group += 1
        row = np.zeros(ROW)
        rot = np.eye(3) if rot is None else rot if isinstance(rot, np.ndarray) else turn(*rot)
        row[:6] = (kind, cut, self.group, *at)
        row[6:15] = rot.T.ravel()
        row[15 : 15 + len(a)] = a
        row[19] = r
        row[20:23] = row[23:26] = color
        row[28:30] = (1, 0.25)
        if bands is not None:
            row[23:26], row[26:28] = bands[1], (BANDS, 1 / bands[0])
            row[28 : 26 + len(bands)] = bands[2:]
        elif sectors is not None:
            row[23:26], row[26:28] = sectors[1], (SECTORS, sectors[0])
        elif dots is not None:
            row[23:26], row[26:28] = dots[1], (DOTS, 1 / dots[0])
        elif self.pattern and color is self.main and not cut:
            row[23:26], row[26] = self.ink, self.pattern
            row[28] = self.across  # the frequency follows from the object's size, in `place`
        self.rows.append(row)

    def ball(self, at, a, color, **more) -> None:
        """An ellipsoid; `a` is its three half axes, or a radius."""
        self.add(ELLIPSOID, at, (a,) * 3 if isinstance(a, (int, float)) else a, color, **more)

    def box(self, at, half, color, r=0.03, **more) -> None:
        """A box with rounded edges, by its half sizes."""
        self.add(BOX, at, half, color, r=min(r, *half), **more)

    def cone(self, at, h, bottom, top, color, r=0.02, **more) -> None:
        """A cone cut off at half height h above and below, with the radii of its ends."""
        self.add(CONE, at, (h, bottom, top * 1.0001 + 1e-4), color, r=min(r, h / 2, max(bottom, top) / 2), **more)

    def tube(self, at, h, radius, color, r=0.02, **more) -> None:
        """A solid upright cylinder of half height h."""
        self.cone(at, h, radius, radius, color, r=r, **more)

    def torus(self, at, ring, thick, color, **more) -> None:
        """A ring lying flat."""
        self.add(TORUS, at, (ring, thick), color, **more)

    def limb(self, start, end, radius, color, tip=None, **more) -> None:
        """A capsule from start to end; `tip` is the radius at the end where it differs."""
        a, b = np.array(start, float), np.array(end, float)
        length = float(np.linalg.norm(b - a))
        y = (b - a) / length
        x = np.cross(y, (0, 0, 1.0) if abs(y[2]) < 0.9 else (1.0, 0, 0))
        x /= np.linalg.norm(x)
        rot = np.stack([x, y, np.cross(x, y)], 1)
        self.add(CAPSULE, (a + b) / 2, (length / 2, radius, radius if tip is None else tip), color, rot=rot, **more)

    def dome(self, at, a, color, **more) -> None:
        """The upper half of an ellipsoid."""
        self.add(DOME, at, a, color, **more)

    def prism(self, at, a, color, **more) -> None:
        """A gable roof: half width, height, half length along Z."""
        self.add(PRISM, at, a, color, **more)

    def pyramid(self, at, a, color, **more) -> None:
        """A pyramid: half width, height, half depth."""
        self.add(PYRAMID, at, a, color, **more)

    def shell(self, at, a, thick, color, **more) -> None:
        """A hollow dome of the given half thickness."""
        self.add(SHELL, at, (*a, thick), color, **more)

    def star(self, at, radius, thick, color, points=5, inner=0.5, **more) -> None:
        """A star in the XY plane, `thick` half its depth."""
        self.add(STAR, at, (radius, points, thick, inner), color, **more)

    def arc(self, at, ring, thick, half_angle, color, **more) -> None:
        """A part of a ring in the XY plane, symmetric about +Y; half_angle in degrees."""
        self.add(ARC, at, (ring, thick, math.radians(half_angle)), color, **more)

    def heart(self, at, size, thick, color, r=0.05, **more) -> None:
        """A heart in the XY plane, 1.2 sizes wide and 1.1 high."""
        self.add(HEART, at, (size, thick), color, r=r, **more)

    def disc(self, at, a, color, r=0.02, **more) -> None:
        """An elliptic cylinder: radius along X, half height, radius along Z."""
        self.add(DISC, at, a, color, r=min(r, a[1] / 2), **more)

    def absorb(self, other: Builder, at=(0, 0, 0), scale: float = 1.0, yaw: float = 0.0) -> None:
        """Take over another object's rows, scaled, turned about Y and moved."""
        spin = turn(ry=yaw)
        for old in other.rows:
            row = old.copy()
            row[2] += self.group
            row[3:6] = np.array(at) + scale * spin @ old[3:6]
            row[6:15] = (spin @ old[6:15].reshape(3, 3).T).T.ravel()
            lengths = _LENGTHS.get(int(row[0]), (15, 16, 17))
            row[list(lengths)] *= scale
            row[19] *= scale
            if row[26] in (BANDS, DOTS):
                row[27] /= scale
                row[29] -= at[int(row[28])] * row[27]
            self.rows.append(row)
        self.group += other.group

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and highest corner of the box about all solids."""
        points = np.concatenate(self._fit())
        return points.min(0), points.max(0)

    def _fit(self) -> list[np.ndarray]:
        """Fill in the bounds of every row; the hull points of the solids, in the object's frame."""
        solids = []
        for row in self.rows:
            hull = _hull(int(row[0]), tuple(row[15:19]), row[19])
            low, high = hull.min(0), hull.max(0)
            row[30] = np.sqrt((hull**2).sum(1).max()) * 1.02
            row[31:34], row[34:37] = (low + high) / 2, (high - low) / 2 * 1.02
            if not row[1]:
                solids.append(hull @ row[6:15].reshape(3, 3) + row[3:6])
        return solids

    def place(self, yaw: float, size: float, stretch=(1.0, 1.0, 1.0)) -> tuple[np.ndarray, np.ndarray]:
        """Centre, turn and scale the object so that it fills `size` of the sphere every view holds.

        Args:
            yaw: Turn about Y in degrees; positive turns the front (+Z) towards +X.
            size: Share of RADIUS that the object's own sphere gets, in (0, 1].
            stretch: Factors along the object's axes.

        Returns:
            Primitives (n, ROW) in the object's frame and the frame (12,), world to object, both float32.
        """
        points = np.concatenate(self._fit())
        middle = (points.min(0) + points.max(0)) / 2
        reach = np.sqrt((((points - middle) * stretch) ** 2).sum(1).max())
        unit = RADIUS * size / reach
        for row in self.rows:
            if row[26] in PATTERN_STEP and row[27] == 0:
                row[27] = unit / PATTERN_STEP[int(row[26])]
        frame = np.concatenate([(turn(ry=-yaw) / (unit * np.array(stretch))[:, None]).ravel(), middle])
        return np.stack(self.rows).astype(np.float32), frame.astype(np.float32)


_LENGTHS = {TORUS: (15, 16), SHELL: (15, 16, 17, 18), STAR: (15, 17), ARC: (15, 16), HEART: (15, 16)}
