"""A loaded model made ready to render: catalogue orientation and size, glass, unit sphere; yaw, scale and tint."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
from objects.palette import WINDOW

from furniture import words
from furniture.catalog import Entry
from furniture.wavefront import Mesh, crease_normals

RADIUS = 0.45  # of the bounding sphere: no view of the rig crops it


def fit(position: np.ndarray) -> np.ndarray:
    """Positions centred on their bounding box and scaled to RADIUS."""
    low, high = position.min((0, 1)), position.max((0, 1))
    position = position - (low + high) / 2
    return (position * (RADIUS / np.linalg.norm(position, axis=-1).max())).astype(np.float32)


def unit(normal: np.ndarray) -> np.ndarray:
    """Normals of length one; zero stays zero."""
    return (normal / (np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-20)).astype(np.float32)


def prepare(mesh: Mesh, entry: Entry) -> Mesh:
    """The model as the catalogue shows it: front towards +Z, its real proportions, clear glass removed, fitted.

    Raises:
        ValueError: If nothing visible is left.
    """
    position, normal = mesh.position.astype(np.float64), mesh.normal.astype(np.float64)
    if entry.rotation:
        turn = np.array(entry.rotation).reshape(3, 3)
        position, normal = position @ turn.T, normal @ turn.T
    extent = np.ptp(position.reshape(-1, 3), axis=0)
    if extent.max() <= 0:
        raise ValueError(f"{entry.id}: all vertices coincide")
    wanted = np.array(entry.size)
    scale = wanted / np.maximum(extent, 1e-30)
    if (wanted <= 0).any() or (extent < 1e-9 * extent.max()).any() or scale.max() / scale.min() > 20:
        scale = np.ones(3)
    position, normal = position * scale, normal / scale
    position = (position / np.ptp(position.reshape(-1, 3), axis=0).max()).astype(np.float32)
    missing = ~np.isfinite(normal).all((1, 2))
    if missing.any():
        normal[missing] = crease_normals(position)[missing]
    kind = words.category(words.phrase(entry))
    panes = windows(mesh) if kind == "car" else np.zeros(len(mesh.opacity), bool)
    keep = ~glass(mesh, position) | (kind in ("car", "table"))  # a table needs its top
    if not keep.any():
        raise ValueError(f"{entry.id}: nothing visible")
    return replace(
        mesh,
        factor=np.where(panes[:, None], WINDOW, mesh.factor).astype(np.float32),
        position=fit(position[keep]),
        normal=unit(normal[keep]),
        uv=np.ascontiguousarray(mesh.uv[keep]),
        material=np.ascontiguousarray(mesh.material[keep]),
    )


def windows(mesh: Mesh) -> np.ndarray:
    """Which materials are the panes of a vehicle: they become dark and opaque, or the inside would show."""
    lights = np.array([bool(re.search(r"light|lamp|lens|signal|line|phare|faro", name)) for name in mesh.names])
    return (mesh.opacity < 0.999) & (mesh.texture < 0) & ~lights


def glass(mesh: Mesh, position: np.ndarray) -> np.ndarray:
    """Which triangles to leave out: clear ones, unless they are much of the surface or carry the outline."""
    clear = mesh.opacity[mesh.material] < 0.3
    if not clear.any():
        return clear
    edges = position[:, 1:] - position[:, :1]
    area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=-1)
    if clear.all() or area[clear].sum() > 0.35 * area.sum():
        return np.zeros_like(clear)
    extent = np.ptp(position.reshape(-1, 3), axis=0)
    left = np.ptp(position[~clear].reshape(-1, 3), axis=0)
    return clear if (left > 0.8 * extent).all() else np.zeros_like(clear)


def transform(mesh: Mesh, yaw: float, scale: tuple[float, float, float] = (1, 1, 1), mirror: bool = False) -> Mesh:
    """Stretch, mirror left and right, turn about +Y, fit again.

    Args:
        mesh: Prepared.
        yaw: Degrees; positive turns the front from +Z towards +X.
        scale: Along x, y, z, before the turn.
        mirror: Swap left and right.
    """
    stretch = np.array(scale, np.float64) * (-1 if mirror else 1, 1, 1)
    c, s = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    position = fit((mesh.position * stretch) @ turn.T)
    normal = unit((mesh.normal / stretch) @ turn.T)
    uv = mesh.uv
    if mirror:  # keeps the winding: fronts stay counter-clockwise
        position, normal, uv = position[:, ::-1], normal[:, ::-1], uv[:, ::-1]
    return replace(
        mesh, **{n: np.ascontiguousarray(a) for n, a in (("position", position), ("normal", normal), ("uv", uv))}
    )


def main_materials(mesh: Mesh, ids: np.ndarray) -> tuple[list[int], float]:
    """The most visible material with those that look like it, and their share of what is seen.

    Args:
        mesh: Prepared.
        ids: Triangle numbers of some pictures, any shape; -1 = nothing.
    """
    seen = np.bincount(mesh.material[ids[ids >= 0]], minlength=len(mesh.texture)).astype(float)
    seen /= max(seen.sum(), 1)
    colour, top = mesh.albedo(), int(seen.argmax())
    alike = (np.abs(colour - colour[top]).max(1) < 0.12) & (seen > 0)
    alike &= (mesh.texture >= 0) == (mesh.texture[top] >= 0)
    return np.flatnonzero(alike).tolist(), float(seen[alike].sum())


def tint(mesh: Mesh, materials: list[int], rgb: np.ndarray) -> Mesh:
    """Give some materials one colour; the light and dark pattern of their pictures stays.

    Args:
        mesh: Prepared.
        materials: Numbers of the materials.
        rgb: Three numbers in 0..1.
    """
    factor, texels = mesh.factor.copy(), mesh.texels
    for k in materials:
        factor[k] = rgb
    for texture in {int(mesh.texture[k]) for k in materials} - {-1}:
        texels = texels.copy() if texels is mesh.texels else texels
        first = mesh.levels[texture, 1]
        last = mesh.levels[texture, 1 + 3 * (mesh.levels[texture, 0] - 1) :][:3]
        part = texels[first : last[0] + last[1] * last[2]]  # all levels lie in a row
        light = part[:, :3] @ np.array([0.30, 0.59, 0.11], np.float32)
        mean = max(20.0, float(light[: mesh.levels[texture, 2] * mesh.levels[texture, 3]].mean()))
        part[:, :3] = np.clip(200 * (0.35 + 0.65 * light / mean), 0, 255)[:, None].astype(np.uint8)
        for k in materials:
            if mesh.texture[k] == texture:
                factor[k] = np.asarray(rgb) * (255 / 200)
    return replace(mesh, factor=factor, texels=texels)
