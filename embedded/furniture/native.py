"""The two C++ files of this folder as one shared library, compiled at first use."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

SOURCES = ("obj.cpp", "raster.cpp")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off")


class Array(ctypes.c_void_p):
    """A pointer made from a contiguous numpy array of a known type."""

    @staticmethod
    def of(array: np.ndarray, dtype: type) -> ctypes.c_void_p:
        """The address of `array`; the caller keeps it alive.

        Raises:
            TypeError: If it has another type or is not contiguous.
        """
        if array.dtype != dtype or not array.flags.c_contiguous:
            raise TypeError(f"need a contiguous {np.dtype(dtype)} array, got {array.dtype}")
        return ctypes.c_void_p(array.ctypes.data)


class MeshPointers(ctypes.Structure):
    """struct Mesh of raster.cpp."""

    _fields_ = [
        ("triangles", ctypes.c_int64),
        *(
            (name, ctypes.c_void_p)
            for name in ("position", "normal", "uv", "material", "factor", "texture", "cutout", "texels", "levels")
        ),
    ]


class CameraNumbers(ctypes.Structure):
    """struct Camera of raster.cpp."""

    _fields_ = [
        ("c2w", ctypes.c_float * 12),
        ("focal", ctypes.c_float),
        ("centre", ctypes.c_float),
        ("width", ctypes.c_int32),
        ("samples", ctypes.c_int32),
        ("canonical", ctypes.c_int32),
        ("least", ctypes.c_int32),
    ]


class OcclusionPointers(ctypes.Structure):
    """struct Occlusion of raster.cpp."""

    _fields_ = [
        ("directions", ctypes.c_int32),
        ("size", ctypes.c_int32),
        ("axes", ctypes.c_void_p),
        ("height", ctypes.c_void_p),
    ]


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled library; built beside the sources under a name that depends on them.

    Raises:
        RuntimeError: If the compiler is missing or fails.
    """
    folder = Path(__file__).parent
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for name in SOURCES:
        digest.update((folder / name).read_bytes())
    target = folder / f"furniture-{digest.hexdigest()[:12]}.so"
    if not target.exists():
        handle, temporary = tempfile.mkstemp(suffix=".so", dir=folder)
        os.close(handle)
        command = ["g++", *FLAGS, "-o", temporary, *(str(folder / name) for name in SOURCES)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
            Path(temporary).replace(target)  # atomic: two builders do not meet
        except FileNotFoundError as error:
            raise RuntimeError("g++ not found; install a C++ compiler") from error
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"compiling {', '.join(SOURCES)} failed:\n{error.stderr}") from error
        finally:
            Path(temporary).unlink(missing_ok=True)
    return declare(ctypes.CDLL(str(target)))


def declare(lib: ctypes.CDLL) -> ctypes.CDLL:
    """Set argument and result types of every function."""
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    for name, result, arguments in (
        ("obj_read", pointer, (ctypes.c_char_p, integer)),
        ("obj_triangles", integer, (pointer,)),
        ("obj_names", integer, (pointer,)),
        ("obj_name", ctypes.c_char_p, (pointer, integer)),
        ("obj_copy", None, (pointer,) * 5),
        ("obj_free", None, (pointer,)),
        ("crease_normals", None, (integer, *(pointer,) * 4, ctypes.c_float, pointer)),
        ("occlusion_heights", None, (ctypes.POINTER(MeshPointers), ctypes.POINTER(OcclusionPointers))),
        (
            "render_view",
            None,
            (
                ctypes.POINTER(MeshPointers),
                ctypes.POINTER(CameraNumbers),
                ctypes.POINTER(OcclusionPointers),
                *(pointer,) * 5,
            ),
        ),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, list(arguments)
    return lib
