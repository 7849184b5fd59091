"""Surfaces of densities, as meshes with a colour at each vertex.

Needs the extra `mesh` (scikit-image, trimesh). World frame as everywhere: Y up, as glTF has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from align3d.files import replacing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from jaxtyping import Float, Int
    from torch import Tensor

HALF = 0.5  # objects fill [-HALF, HALF]^3
WIDER = 0.1  # of the box of the surface, added to each of its sides
SMALL = 0.01  # parts with less than this of the largest one's faces are dropped
AT_ONCE = 1 << 17  # points


@dataclass(frozen=True)
class Mesh:
    """Triangles, counter-clockwise seen from outside."""

    vertices: Float[np.ndarray, "N 3"]  # scene units
    faces: Int[np.ndarray, "F 3"]
    colors: Float[np.ndarray, "N 3"]  # RGB in [0, 1]


def extract(
    density: Callable[[Tensor], Tensor],
    color: Callable[[Tensor], Tensor],
    coarse: int,
    cells: int,
    level: float | None = None,
    most: float = 25.0,
    thin: float = 1.0,
) -> Mesh | None:
    """Where a density has a level, first found coarsely and then again in the box of what was found.

    Args:
        density: Of points (M, 3) in scene units, on the CPU.
        color: RGB in [0, 1], of the same.
        coarse: Cells along a side, the first time.
        cells: The same, the second time.
        level: Of the density; None: the mean of what is above `thin`, at most `most`.
        most: The highest level that is chosen.
        thin: What does not count for it.

    Returns:
        The mesh without its small parts; None if there is no surface.

    Raises:
        ModuleNotFoundError: If scikit-image is missing.
    """
    box = np.array([[-HALF] * 3, [HALF] * 3])
    values = sampled(density, box, coarse)
    if level is None:
        thick = values[values > thin]
        level = min(most, float(thick.mean())) if thick.size else most
    found = marched(values, box, level)
    if found is None:
        return None
    low, high = found[0].min(0), found[0].max(0)
    wide = WIDER * (high - low) + 2 * HALF / coarse
    box = np.stack([np.maximum(low - wide, box[0]), np.minimum(high + wide, box[1])])
    found = marched(sampled(density, box, cells), box, level)
    if found is None:
        return None
    vertices, faces = large(*found)
    with torch.no_grad():
        x = torch.from_numpy(vertices).float()
        colors = torch.cat([color(part) for part in x.split(AT_ONCE)])
    return Mesh(vertices, faces, colors.double().numpy())


def sampled(density: Callable[[Tensor], Tensor], box: Float[np.ndarray, "2 3"], cells: int) -> np.ndarray:
    """Densities at the corners of cells of a box, x first; 0 on its outside, so that surfaces close."""
    axes = [torch.linspace(float(low), float(high), cells + 1) for low, high in box.T]
    with torch.no_grad():
        layers = []
        for part in axes[0].split(max(1, AT_ONCE // (cells + 1) ** 2)):
            x = torch.stack(torch.meshgrid(part, axes[1], axes[2], indexing="ij"), -1)
            layers.append(torch.cat([density(p) for p in x.view(-1, 3).split(AT_ONCE)]).view(x.shape[:3]))
    return np.pad(torch.cat(layers).double().numpy(), 1)


def marched(values: np.ndarray, box: Float[np.ndarray, "2 3"], level: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Vertices in scene units and faces, by marching cubes; None if the level is nowhere."""
    from skimage.measure import marching_cubes

    if not values.min() < level < values.max():
        return None
    vertices, faces, _, _ = marching_cubes(values, level, gradient_direction="ascent")
    step = (box[1] - box[0]) / (np.array(values.shape) - 3)  # one more value than cells, and one around
    vertices = box[0] + (vertices - 1) * step
    return np.clip(vertices, box[0], box[1]), faces.astype(np.int64)


def large(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mesh without parts that have less than SMALL of the largest one's faces."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    size = len(vertices)
    links = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(size, size))
    part = connected_components(links, directed=False)[1][faces[:, 0]]
    count = np.bincount(part)
    faces = faces[count[part] >= SMALL * count.max()]
    used, faces = np.unique(faces, return_inverse=True)
    return vertices[used], faces.reshape(-1, 3)


def write_mesh(path: str | Path, mesh: Mesh) -> None:
    """Write a .glb or .obj file, with colours of vertices; it appears whole or not at all.

    Raises:
        ModuleNotFoundError: If trimesh is missing.
    """
    import trimesh

    colors = (mesh.colors.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    made = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=colors, process=False)
    with replacing(path) as temporary:
        made.export(temporary)
