"""Options of a neural radiance field; its files keep them.

Lengths are in units of the field, whose box [-1, 1]^3 is the [-0.5, 0.5]^3 that objects fill: two of them are one scene
unit. The published values are those of MVDream's configuration for threestudio; defaults are for a processor without
GPU, where a hash grid is slow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

Ramp = tuple[float, float, float, float]  # update where it starts, value until then, value from its end on, its end
NONE: Ramp = (0.0, 0.0, 0.0, 0.0)


def limits(part: object, name: str, most: dict[str, tuple[float | int, float | int]]) -> None:
    """Refuse options outside their limits.

    Raises:
        ValueError: Names the first of them.
    """
    for key, (low, high) in most.items():
        if not low <= getattr(part, key) <= high:
            raise ValueError(f"scene.{name}{key} must be {low} to {high}, got {getattr(part, key)}")


@dataclass(frozen=True)
class TriPlane:
    """Three planes of features, looked up at a point's xy, xz and yz."""

    side: int = 64  # entries along each side of a plane
    features: int = 8  # numbers per entry

    def __post_init__(self) -> None:
        limits(self, "triplane.", {"side": (2, 1024), "features": (1, 64)})


@dataclass(frozen=True)
class HashGrid:
    """Grids of features from coarse to fine, the finer ones in hash tables (Mueller et al. 2022)."""

    levels: int = 16  # grids
    features: int = 2  # numbers per entry
    log2_size: int = 19  # logarithm of the most entries of a level
    coarsest: int = 16  # entries along a side of the first grid
    finest: int = 4096  # of the last

    def __post_init__(self) -> None:
        most = {"levels": (1, 32), "features": (1, 16), "log2_size": (3, 24), "coarsest": (2, 512)}
        limits(self, "hash.", most | {"finest": (self.coarsest, 1 << 16)})


@dataclass(frozen=True)
class March:
    """How rays are sampled, and which parts of the box are left out."""

    samples: int = 64  # steps across the diagonal of the box; published: 512
    prune: float = 0.01  # samples that take less than this of the light get no colour and no gradient; 0 = all do
    cells: int = 32  # of the grid of what is empty, along a side
    every: int = 16  # updates between looks at the cells
    warmup: int = 256  # updates in which all cells are looked at; then a quarter of them, and of the full ones
    decay: float = 0.95  # of what a cell held, at each look
    empty: float = 0.01  # cells that take less than this of the light, in one step, are left out; 0 = none are

    def __post_init__(self) -> None:
        most = {"samples": (2, 4096), "prune": (0, 0.5), "cells": (1, 256), "every": (1, math.inf)}
        limits(self, "march.", most | {"warmup": (0, math.inf), "decay": (0, 1), "empty": (0, 1)})


@dataclass(frozen=True)
class Backdrop:
    """What is behind the object while it is optimised; pictures of the result have a plain colour there."""

    kind: Literal["plain", "learned"] = "plain"  # --background, or a network of the ray's direction (published)
    random: float = 0.0  # probability that an update has a random colour there instead; published: 0.5

    def __post_init__(self) -> None:
        if self.kind not in ("plain", "learned"):
            raise ValueError(f"scene.backdrop.kind must be plain or learned, got {self.kind!r}")
        limits(self, "backdrop.", {"random": (0, 1)})


@dataclass(frozen=True)
class Shading:
    """Light on the object while it is optimised, which gives it a shape of its own; pictures have none."""

    start: int = -1  # first update with light; -1 = never; published: 5000
    albedo: float = 0.25  # probability of colours alone
    textureless: float = 0.5  # probability, where there is light, of light alone

    def __post_init__(self) -> None:
        limits(self, "shading.", {"start": (-1, math.inf), "albedo": (0, 1), "textureless": (0, 1)})


@dataclass(frozen=True)
class Penalties:
    """Weights of the field's own penalties: update where a ramp starts, its first value, its last, where it ends."""

    orient: Ramp = NONE  # of normals that face away; published, with light: 0 10 1000 5000
    sparsity: Ramp = NONE  # of all that is opaque
    opaque: Ramp = NONE  # of what is half transparent
    z_variance: Ramp = NONE  # of spread along a ray

    @property
    def ramps(self) -> dict[str, Ramp]:
        """All of them, by name."""
        names = {"orient": self.orient, "sparsity": self.sparsity}
        return names | {"opaque": self.opaque, "z_variance": self.z_variance}

    def __post_init__(self) -> None:
        for name, (start, first, last, end) in self.ramps.items():
            if not 0 <= start <= end < math.inf or not math.isfinite(first + last):
                raise ValueError(
                    f"scene.penalties.{name} must be START FROM TO END with START <= END, got {start}, {first}, "
                    f"{last}, {end}"
                )

    def weights(self, update: int) -> dict[str, float]:
        """The weights in an update, of those that count."""
        found = {}
        for name, (start, first, last, end) in self.ramps.items():
            done = min(1.0, max(0.0, (update - start) / (end - start))) if end > start else float(update >= end)
            found[name] = first + (last - first) * done
        return {name: weight for name, weight in found.items() if weight}


@dataclass(frozen=True)
class NerfOptions:
    """A field, and how it is seen while it is optimised."""

    grid: Literal["triplane", "hash"] = "triplane"  # where features are kept
    hidden: int = 32  # width of the networks for density and colour; published: 64
    blob: tuple[float, float] = (10.0, 0.5)  # density to begin with: its height, and the radius where that is 0
    grid_rate: float = 0.01  # learning rate of the features
    net_rate: float = 1e-3  # learning rate of the networks
    triplane: TriPlane = field(default_factory=TriPlane)  # with --scene.grid triplane
    hash: HashGrid = field(default_factory=HashGrid)  # with --scene.grid hash
    march: March = field(default_factory=March)  # along rays
    backdrop: Backdrop = field(default_factory=Backdrop)  # behind the object
    shading: Shading = field(default_factory=Shading)  # light
    penalties: Penalties = field(default_factory=Penalties)  # of the field's own

    def __post_init__(self) -> None:
        if self.grid not in ("triplane", "hash"):
            raise ValueError(f"scene.grid must be triplane or hash, got {self.grid!r}")
        limits(self, "", {"hidden": (1, 512), "grid_rate": (0, 10), "net_rate": (0, 10)})
        height, radius = self.blob
        if not (abs(height) <= 1e3 and 1e-3 <= radius <= 1e3):
            raise ValueError(f"scene.blob must be a height up to 1000 and a radius, got {height} and {radius}")
