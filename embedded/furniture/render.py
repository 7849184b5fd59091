"""The six training views of a mesh: four canonical, two elsewhere. The camera conventions are in the functions."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import numpy as np

from furniture import native
from furniture.wavefront import Mesh

SIDE = 64  # pixels
DISTANCE = 1.4  # of the cameras from the origin
FOCAL = 1422.222 / 1024  # of the width
ELEVATION = 20.0
AZIMUTHS = (0.0, 90.0, 180.0, 270.0)
SAMPLES = 4  # a side of a pixel
LEAST = 9  # samples of 16 that make a canonical pixel covered although its centre is not; fewer fatten outlines
DIRECTIONS, HEIGHTS = 24, 96  # of the ambient occlusion


@dataclass(frozen=True)
class Views:
    """One record: V canonical views first, then the novel ones."""

    rgb: np.ndarray  # (V + N, H, W, 3) uint8
    mask: np.ndarray  # (V + N, H, W) uint8
    depth: np.ndarray  # (V, H, W) float16, camera z - DISTANCE, 0 where the mask is 0
    normal: np.ndarray  # (V, H, W, 3) int8, OpenCV camera frame
    ids: np.ndarray  # (V, H, W) int32: triangle, -1 = nothing


def camera_to_world(azimuth: float, elevation: float) -> np.ndarray:
    """(3, 4) matrix of a camera that looks at the origin from DISTANCE; OpenCV axes, Y up.

    Args:
        azimuth: Degrees; 0 is on +Z, 90 on +X.
        elevation: Degrees above the horizon.
    """
    a, e = np.radians(azimuth), np.radians(elevation)
    back = np.array([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)])
    right = np.array([np.cos(a), 0.0, -np.sin(a)])
    down = np.cross(-back, right)
    return np.stack([right, down, -back, DISTANCE * back], 1).astype(np.float32)


@functools.cache
def sky(count: int) -> np.ndarray:
    """(count, 3, 3) frames (right, up, outwards), outwards spread evenly over the sphere."""
    k = np.arange(count) + 0.5
    y, turn = 1 - 2 * k / count, k * np.pi * (3 - 5**0.5)
    flat = np.sqrt(1 - y * y)
    out = np.stack([flat * np.cos(turn), y, flat * np.sin(turn)], 1)
    right = np.cross(out, np.where(np.abs(out[:, :1]) < 0.9, [[1.0, 0, 0]], [[0, 1.0, 0]]))
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return np.ascontiguousarray(np.stack([right, np.cross(out, right), out], 1), np.float32)


def occlusion(mesh: Mesh, directions: int = DIRECTIONS) -> tuple[native.OcclusionPointers, tuple[np.ndarray, ...]]:
    """Height maps of a mesh for ambient occlusion, and the arrays to keep alive."""
    axes = sky(directions) if directions else np.zeros((0, 3, 3), np.float32)
    height = np.empty((directions, HEIGHTS, HEIGHTS), np.float32)
    pointers = native.OcclusionPointers(directions, HEIGHTS, axes.ctypes.data, height.ctypes.data)
    if directions:
        native.library().occlusion_heights(ctypes.byref(mesh.pointers()), ctypes.byref(pointers))
    return pointers, (axes, height)


def render(mesh: Mesh, novel: np.ndarray, side: int = SIDE, directions: int = DIRECTIONS) -> Views:
    """Views of a fitted mesh.

    Canonical views sample u = x / (W - 1), end points included, which is a focal of FOCAL * (W - 1) pixels about the
    same centre; novel views use the ordinary half-pixel grid.

    Args:
        mesh: Inside a sphere of radius 0.45.
        novel: (N, 2) azimuth and elevation of further views, degrees.
        side: Pixels.
        directions: Of the ambient occlusion; 0 = none.
    """
    poses = [(a, ELEVATION, True) for a in AZIMUTHS] + [(float(a), float(e), False) for a, e in novel]
    first = len(AZIMUTHS)
    rgb, mask = np.empty((len(poses), side, side, 3), np.uint8), np.empty((len(poses), side, side), np.uint8)
    z, ids = np.empty((first, side, side), np.float32), np.empty((first, side, side), np.int32)
    normal = np.empty((first, side, side, 3), np.int8)
    pointers, sky_light = mesh.pointers(), occlusion(mesh, directions)
    for k, (azimuth, elevation, canonical) in enumerate(poses):
        camera = native.CameraNumbers(
            (ctypes.c_float * 12)(*camera_to_world(azimuth, elevation).ravel()),
            FOCAL * (side - 1 if canonical else side),
            side / 2,
            side,
            SAMPLES,
            int(canonical),
            LEAST,
        )
        extra = (z[k], normal[k], ids[k]) if canonical else (None,) * 3
        native.library().render_view(
            ctypes.byref(pointers),
            ctypes.byref(camera),
            ctypes.byref(sky_light[0]),
            rgb[k].ctypes.data,
            mask[k].ctypes.data,
            *(None if a is None else a.ctypes.data for a in extra),
        )
    depth = np.where(mask[:first] > 0, z - DISTANCE, 0).astype(np.float16)
    return Views(rgb, mask, depth, normal, ids)
