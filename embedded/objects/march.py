"""Compiles march.cpp, once, into a cache folder, and calls it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

FOCAL = 1422.222 / 1024  # of the image width
RADIUS = 1.4  # distance of every camera from the origin
ELEVATION = 20.0  # of the canonical views, degrees
AZIMUTHS = (0.0, 90.0, 180.0, 270.0)
FLAGS = ("-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled tracer, from the cache or built now (a few seconds).

    Raises:
        RuntimeError: If no C++ compiler works; its message is passed on.
    """
    source = Path(__file__).with_name("march.cpp")
    text = source.read_bytes() + source.with_name("primitives.h").read_bytes()
    wide = ("-march=x86-64-v3",) if _has_avx2() else ()
    compiler = os.environ.get("CXX", "c++")
    key = hashlib.sha256(text + repr((compiler, FLAGS, wide)).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "align3d"
    path = folder / f"march-{key}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch) / path.name
            command = [compiler, *FLAGS, *wide, str(source), "-o", str(built)]
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)
            except FileNotFoundError as error:
                raise RuntimeError(f"no C++ compiler {compiler!r}; install g++ or set CXX") from error
            except subprocess.CalledProcessError as error:
                raise RuntimeError(f"{' '.join(command)} failed:\n{error.stderr}") from error
            built.replace(path)
    return ctypes.CDLL(str(path))


def _has_avx2() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text().split("flags", 2)[1].split("\n", 1)[0].split()
    except (OSError, IndexError):
        return False
    return {"avx2", "fma", "bmi2", "f16c", "movbe"} <= set(flags)


def camera(azimuth: float, elevation: float) -> np.ndarray:
    """Camera to world (3, 4), OpenCV axes, looking at the origin; azimuth 0 stands on +Z and 90 on +X; degrees."""
    a, e = math.radians(azimuth), math.radians(elevation)
    back = np.array((math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)))
    right = np.array((math.cos(a), 0.0, -math.sin(a)))
    return np.stack([right, -np.cross(back, right), -back, RADIUS * back], 1)


def march(
    objects: list[tuple[np.ndarray, np.ndarray]], cameras: np.ndarray, canonical: int, size: int = 64, threads: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw each object from each of its cameras.

    Args:
        objects: n pairs of primitives (rows, 40) and frame (12,), from Builder.place.
        cameras: (n, views, 3, 4) camera to world, OpenCV axes.
        canonical: How many of the first views put the end points of the image on pixels, take depth, normal and mask at
            one point per pixel, and colour only what is hit; the others lie on the half-pixel grid, antialiased over
            white.
        size: Width and height in pixels.
        threads: Of OpenMP; the result does not depend on it.

    Returns:
        rgb uint8 (n, views, size, size, 3); mask uint8 (n, views, size, size), 0..255; depth float32
        (n, canonical, size, size), camera z, 0 where nothing is; normal int8 (n, canonical, size, size, 3), unit x 127,
        camera frame.

    Raises:
        ValueError: If an object has more than 256 primitives.
    """
    n, views = cameras.shape[:2]
    offsets = np.concatenate([[0], np.cumsum([len(p) for p, _ in objects])]).astype(np.int32)
    prims = np.ascontiguousarray(np.concatenate([p for p, _ in objects]), np.float32)
    frames = np.ascontiguousarray(np.stack([f for _, f in objects]), np.float32)
    cams = np.ascontiguousarray(cameras, np.float32)
    rgb, mask = np.empty((n, views, size, size, 3), np.uint8), np.empty((n, views, size, size), np.uint8)
    depth, normal = np.zeros((n, canonical, size, size), np.float32), np.zeros((n, canonical, size, size, 3), np.int8)
    address = [ctypes.c_void_p(a.ctypes.data) for a in (offsets, prims, frames, cams, rgb, mask, depth, normal)]
    failed = library().march(
        n, *address[:3], views, canonical, address[3], ctypes.c_float(FOCAL), size, *address[4:], threads
    )
    if failed:
        raise ValueError("an object has more than 256 primitives; the tracer's lists end there")
    return rgb, mask, depth, normal
