"""Gaussians as .ply files in the convention of 3D Gaussian Splatting, as SuperSplat, gsplat and others read them.

One `vertex` per Gaussian: x y z, nx ny nz (zero), f_dc_0..2 (colour as the constant spherical harmonic), opacity (its
logit), scale_0..2 (logarithms), rot_0..3 (unit quaternion, w first). The world frame is written as it is, Y up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from align3d.files import replacing
from align3d.scenes.gaussians import Gaussians
from align3d.scenes.raster import RasterConfig

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

SH_C0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))
OPACITY_MARGIN = 1e-6  # opacities 0 and 1 are moved inwards by this, so that their logits are finite
SMALLEST_SCALE = 1e-12  # scene units; flat Gaussians keep a finite logarithm
LARGEST_LOG_SCALE = 40.0  # e^40 = 2e17 scene units; more is a broken file, and e^89 is infinite
MAX_HEADER = 65536  # bytes; a degree-3 file has about 1,500
MAX_TEXT = 64 << 20  # bytes of an ASCII body; text is parsed in memory

READ = (*"xyz", *(f"f_dc_{i}" for i in range(3)), "opacity", *(f"scale_{i}" for i in range(3)),
        *(f"rot_{i}" for i in range(4)))  # fmt: skip
WRITE = (*READ[:3], "nx", "ny", "nz", *READ[3:])
TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
FORMATS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}


@dataclass
class _Element:
    name: str
    count: int
    names: list[str]
    types: list[str]  # numpy codes; "list" for a list property

    def dtype(self, order: str) -> np.dtype:
        return np.dtype([(name, order + kind) for name, kind in zip(self.names, self.types, strict=True)])


def write_ply(path: str | Path, gaussians: Gaussians, index: int = 0) -> None:
    """Writes one scene of a batch as a binary .ply; the file appears whole or not at all.

    Quaternions that the scene does not normalise (`raster.normalize_quats` False) deform their Gaussians. Their effect
    on the covariance is folded into the scales, so that programs that do normalise draw the same ellipsoids.

    Args:
        path: Name of the file; an existing one is replaced.
        gaussians: The scenes.
        index: Which of them.

    Raises:
        ValueError: If there is no such scene, a value is not finite, or the file cannot be written.
    """
    scene = gaussians.index(index).detach()
    means, quats, scales, opacities, colors = tensors = [x[0].cpu().double().numpy() for x in scene.tensors]
    for name, value in zip(("means", "quats", "scales", "opacities", "colors"), tensors, strict=True):
        bad = int((~np.isfinite(value)).sum())
        if bad:
            raise ValueError(f"cannot write {path}: {bad} values of the {name} are not finite; the scene is broken")
    length = np.linalg.norm(quats, axis=-1, keepdims=True)
    if not gaussians.raster.normalize_quats and (np.abs(length - 1) > 1e-6).any():
        quats, scales = _fold(quats, scales)
    else:
        identity = np.array([1.0, 0.0, 0.0, 0.0])  # what the rotation polynomial makes of a zero quaternion
        quats = np.where(length > 1e-12, quats / np.maximum(length, 1e-12), identity)
    o = np.clip(opacities, OPACITY_MARGIN, 1 - OPACITY_MARGIN)
    columns = np.concatenate(
        [
            means,
            np.zeros_like(means),
            (colors - 0.5) / SH_C0,
            np.log(o / (1 - o))[:, None],
            np.log(np.maximum(np.abs(scales), SMALLEST_SCALE)),
            quats,
        ],
        axis=-1,
    )
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(columns)}"]
    header += [f"property float {name}" for name in WRITE] + ["end_header", ""]
    with replacing(path) as temporary:
        temporary.write_bytes("\n".join(header).encode() + columns.astype("<f4").tobytes())


def read_ply(path: str | Path, raster: RasterConfig | None = None) -> Gaussians:
    """Reads one scene; its file is not trusted.

    Properties may come in any order and type, binary of either byte order or ASCII, with others between them. View
    dependence (f_rest_*) is read past: of the spherical harmonics only the constant part is kept, cut to [0, 1].

    Args:
        path: The file.
        raster: How the Gaussians are meant to be drawn; the default fits files written here. Scenes trained elsewhere
            usually want `RasterConfig(eps2d=0.3)`; a .ply file does not say.

    Returns:
        Gaussians with B = 1 on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a sound file of this kind; nothing large is allocated before that is known.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no scene file {path}")
    try:
        columns = _columns(path)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, and is refused as such
        bad = ~np.isfinite(columns.astype(np.float32))
    if bad.any():
        name = READ[int(bad.any(axis=0).argmax())]
        raise _error(path, f"has {int(bad.sum())} values that are not finite, the first in {name}", "write it anew")
    means, dc, opacity, scales, quats = np.split(columns, [3, 6, 7, 10], axis=-1)
    if (scales > LARGEST_LOG_SCALE).any():
        raise _error(path, f"has a scale of e^{scales.max():.3g}", "scales are natural logarithms in scene units")
    length = np.linalg.norm(quats, axis=-1, keepdims=True)
    if not (length > 1e-12).all():
        raise _error(path, f"has {int((length <= 1e-12).sum())} rotations of length 0", "write it anew")
    parts = (
        means,
        quats / length,
        np.exp(scales),
        1 / (1 + np.exp(-opacity[:, 0].clip(-80, 80))),
        (0.5 + SH_C0 * dc).clip(0, 1),
    )
    return Gaussians(*(torch.from_numpy(x.astype(np.float32))[None] for x in parts), raster=raster or RasterConfig())


def _columns(path: Path) -> Float[ndarray, "N 14"]:
    """The values that READ names, one row per Gaussian, after checking that the file can hold them."""
    order, elements, start = _header(path)
    vertex = next((element for element in elements if element.name == "vertex"), None)
    if vertex is None:
        raise _error(path, "has no vertex element", "give a Gaussian splatting .ply")
    missing = [name for name in READ if name not in vertex.names]
    if missing:
        some = ", ".join(missing[:4]) + (" ..." if len(missing) > 4 else "")
        hint = "meshes, point clouds and compressed .ply files cannot be read; export it as an uncompressed splat .ply"
        raise _error(path, f"lacks the properties {some}", hint)
    before = elements[: elements.index(vertex)]
    if any("list" in element.types for element in (*before, vertex)):
        raise _error(path, "has list properties in or before its vertices", "give a Gaussian splatting .ply")
    if order == "":
        return _text(path, start, before, vertex)
    start += sum(element.count * element.dtype(order).itemsize for element in before)
    dtype = vertex.dtype(order)
    have = path.stat().st_size - start
    if vertex.count * dtype.itemsize > have:
        raise _short(path, vertex, max(have, 0) // dtype.itemsize)
    rows = np.fromfile(path, dtype=dtype, count=vertex.count, offset=start)
    if len(rows) != vertex.count:  # it shrank since it was measured
        raise _short(path, vertex, len(rows))
    # float32 signalling NaNs warn in the cast; they are refused by the caller anyway
    with np.errstate(invalid="ignore"):
        return np.stack([rows[name].astype(np.float64) for name in READ], axis=-1)


def _text(path: Path, start: int, before: list[_Element], vertex: _Element) -> Float[ndarray, "N 14"]:
    """The same for an ASCII body: one line per vertex."""
    size = path.stat().st_size - start
    if size > MAX_TEXT:
        raise _error(path, f"is ASCII of {size >> 20} MiB, at most {MAX_TEXT >> 20} are read", "save it as binary")
    skip = sum(element.count for element in before)
    if skip + 2 * len(vertex.names) * vertex.count > size + 1:  # a digit and a space for each number
        raise _error(path, f"promises {vertex.count} vertices in {size} bytes", "the file is cut off; copy it again")
    pick = [vertex.names.index(name) for name in READ]
    out = np.empty((vertex.count, len(READ)))
    with path.open("rb") as file:
        file.seek(start)
        for _ in range(skip):
            file.readline()
        for i in range(vertex.count):
            line = file.readline()
            words = line.split()
            try:
                if len(words) != len(vertex.names):
                    raise ValueError
                out[i] = [float(words[j]) for j in pick]
            except ValueError:
                want = f"expected {len(vertex.names)} numbers"
                raise _error(path, f"has {_quote(line)} for vertex {i}, {want}", "write it anew") from None
    return out


def _header(path: Path) -> tuple[str, list[_Element], int]:
    """Byte order ("" for ASCII), elements and the offset of the body."""
    with path.open("rb") as file:
        head = file.read(MAX_HEADER)
    if not re.match(rb"ply\r?\n", head):
        raise _error(path, f"starts with {_quote(head[:16])}, not with 'ply'", "give a .ply file")
    end = re.search(rb"\nend_header[ \t]*\r?\n", head)
    if end is None:
        raise _error(path, f"has no end_header in its first {len(head)} bytes", "the file is cut off or no scene")
    order: str | None = None
    elements: list[_Element] = []
    for line in head[: end.start()].splitlines()[1:]:
        match line.decode("ascii", "replace").split():
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", name, "1.0"] if name in FORMATS and order is None:
                order = FORMATS[name]
            case ["element", name, count] if re.fullmatch(r"\d{1,12}", count):
                elements.append(_Element(name, int(count), [], []))
            case ["property", kind, name] if elements and kind in TYPES and name not in elements[-1].names:
                elements[-1].names.append(name)
                elements[-1].types.append(TYPES[kind])
            case ["property", "list", _, _, name] if elements and name not in elements[-1].names:
                elements[-1].names.append(name)
                elements[-1].types.append("list")
            case _:
                raise _error(path, f"has the header line {_quote(line)}", "that is no sound .ply header")
    if order is None:
        raise _error(path, "does not say its format", "that is no sound .ply header")
    return order, elements, end.end()


def _quote(text: bytes) -> str:
    return repr(text[:60].decode("ascii", "replace"))


def _short(path: Path, vertex: _Element, have: int) -> ValueError:
    return _error(path, f"promises {vertex.count} vertices and holds {have}", "the file is cut off; copy it again")


def _error(path: Path, problem: str, remedy: Any) -> ValueError:
    return ValueError(f"{path} {problem}; {remedy}")


def _fold(quats: Float[ndarray, "N 4"], scales: Float[ndarray, "N 3"]) -> tuple[ndarray, ndarray]:
    """Unit quaternions and scales with the covariances that the raw quaternions give.

    With M = R(q) diag(s), Sigma = M M^T; the singular value decomposition M = U D V^T is the eigen-decomposition
    Sigma = U D^2 U^T without squaring the condition number.
    """
    U, D, _ = np.linalg.svd(_rotation(quats) * scales[:, None, :])
    U[:, :, 2] *= np.sign(np.linalg.det(U))[:, None]  # an axis may point either way; make it a rotation
    return _quaternion(U), D


def _rotation(q: Float[ndarray, "N 4"]) -> Float[ndarray, "N 3 3"]:
    """The rotation polynomial, on the quaternions as they are."""
    w, x, y, z = q.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _quaternion(R: Float[ndarray, "N 3 3"]) -> Float[ndarray, "N 4"]:
    """Unit quaternions of rotation matrices, w >= 0.

    The symmetric 4 x 4 matrix below is 4 q q^T; its longest row is q without division by a small number.
    """
    m = R.transpose(1, 2, 0)
    d = np.stack([m[0, 0], m[1, 1], m[2, 2]])
    Q = np.empty((len(R), 4, 4))
    Q[:, 0, 0] = 1 + d.sum(axis=0)
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        Q[:, i + 1, i + 1] = 1 + d[i] - d[j] - d[k]
        Q[:, 0, i + 1] = Q[:, i + 1, 0] = m[k, j] - m[j, k]
        Q[:, i + 1, j + 1] = Q[:, j + 1, i + 1] = m[i, j] + m[j, i]
    longest = np.einsum("nii->ni", Q).argmax(axis=1)
    q = Q[np.arange(len(R)), longest]
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    return np.where(q[:, :1] < 0, -q, q)
