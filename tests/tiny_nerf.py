"""Small neural radiance fields for tests."""

from dataclasses import replace

import torch

from align3d.scenes.cameras import orbit
from align3d.scenes.nerf.nerf import Nerf
from align3d.scenes.nerf.options import HashGrid, March, NerfOptions, TriPlane

B, V, H, W = 2, 3, 10, 14
SMALL = NerfOptions(
    hidden=8,
    triplane=TriPlane(side=6, features=3),
    hash=HashGrid(levels=3, log2_size=9, coarsest=4, finest=16),
    march=March(samples=24, cells=8),
)
KINDS = ["triplane", "hash"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def cameras(rows=B, views=V, height=H, width=W, focal=1.0):
    azimuth = torch.linspace(0, 250, rows * views).view(rows, views)
    return orbit(azimuth, torch.linspace(-20, 50, rows * views).view(rows, views), 1.4, focal, height, width)


def nerf(kind="triplane", options=SMALL, seed=0):
    """One with features that matter."""
    made = Nerf.begun(replace(options, grid=kind), seeded(seed))
    with torch.no_grad():
        for p in made.field.grid.parameters():
            p.copy_(torch.randn(p.shape, generator=seeded(seed + 1)))
    made.see(torch.arange(options.march.cells**3), seeded(seed))
    return made
