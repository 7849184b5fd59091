"""OBJ + MTL + pictures of one catalogue entry, as a triangle soup with flat materials and mip chains."""

from __future__ import annotations

import io
import math
import posixpath
import re
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from furniture import native
from furniture.catalog import Archive, Entry

LEVELS = 9  # as in raster.cpp
SIDE = 256  # longest side of the finest mip level, texels
MAX_PIXELS = 1 << 26  # of a picture before it is decoded
GLASS = np.array([0.80, 0.86, 0.90])  # what clear glass looks like before white
PICTURES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Mesh:
    """T triangles with their own corners, M materials, K textures."""

    position: np.ndarray  # (T, 3, 3) float32
    normal: np.ndarray  # (T, 3, 3) float32, unit
    uv: np.ndarray  # (T, 3, 2) float32
    material: np.ndarray  # (T,) int32
    factor: np.ndarray  # (M, 3) float32: albedo, or the texture's multiplier
    texture: np.ndarray  # (M,) int32, -1 = none
    cutout: np.ndarray  # (M,) uint8: alpha-tested
    texels: np.ndarray  # (N, 4) uint8
    levels: np.ndarray  # (K, 1 + 3 * LEVELS) int32: count, then offset, width, height
    opacity: np.ndarray  # (M,) float32
    names: tuple[str, ...] = ()  # of the materials, with the picture's name

    def pointers(self) -> native.MeshPointers:
        """The C struct; valid while the mesh lives."""
        of = native.Array.of
        return native.MeshPointers(
            len(self.material),
            of(self.position, np.float32),
            of(self.normal, np.float32),
            of(self.uv, np.float32),
            of(self.material, np.int32),
            of(self.factor, np.float32),
            of(self.texture, np.int32),
            of(self.cutout, np.uint8),
            of(self.texels, np.uint8),
            of(self.levels, np.int32),
        )

    def albedo(self) -> np.ndarray:
        """Mean colour of each material, (M, 3) in 0..1."""
        out = self.factor.copy()
        for k, texture in enumerate(self.texture):
            if texture >= 0:
                offset, width, height = self.levels[texture, 1:4]
                used = self.texels[offset : offset + width * height]
                used = used[used[:, 3] > 100] if (used[:, 3] > 100).any() else used
                out[k] *= used[:, :3].mean(0) / 255
        return out.clip(0, 1)


def parse_obj(text: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Positions (T, 3, 3), uv (T, 3, 2), normals (T, 3, 3), material number (T,; -1 = none) and material names.

    Polygons are cut into triangles, concave ones by ear clipping. What a corner lacks is NaN.
    """
    lib = native.library()
    text = re.sub(rb"\\\r?\n", b" ", text)
    handle = lib.obj_read(text, len(text))
    try:
        count = lib.obj_triangles(handle)
        position, uv = np.empty((count, 3, 3), np.float32), np.empty((count, 3, 2), np.float32)
        normal, material = np.empty((count, 3, 3), np.float32), np.empty(count, np.int32)
        lib.obj_copy(handle, position.ctypes.data, uv.ctypes.data, normal.ctypes.data, material.ctypes.data)
        names = [lib.obj_name(handle, k).decode("latin-1").strip() for k in range(lib.obj_names(handle))]
    finally:
        lib.obj_free(handle)
    return position, uv, normal, material, names


def parse_mtl(text: str) -> dict[str, dict]:
    """Materials by name, each with Kd, Ka, Ks, d and map where given; broken lines are skipped."""
    out: dict[str, dict] = {}
    current: dict = {}
    for line in text.splitlines():
        word, _, rest = line.strip().replace("\t", " ").partition(" ")
        word, rest = word.lower(), rest.strip()
        try:
            if word == "newmtl":
                current = out.setdefault(rest, {})
            elif word in ("kd", "ka", "ks"):
                values = [float(x) for x in rest.split()[:3]]
                values = (values * 3)[:3] if len(values) == 1 else values
                current[word] = np.clip(np.array(values).reshape(3), 0, 1)
            elif word == "d":
                current["d"] = float(np.clip(float(rest.replace("-halo", "").split()[0]), 0, 1))
            elif word == "map_kd":
                current["map"] = re.sub(r"^(-\w+\s+[\d.\-]+(\s+[\d.\-]+)*\s+)+", "", rest)
        except (ValueError, IndexError):
            continue
    return out


def mip_chain(data: bytes) -> list[np.ndarray]:
    """RGBA levels of a picture, finest first, down to one texel or LEVELS levels.

    Raises:
        ValueError: If it cannot be decoded or is too large.
    """
    try:
        picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"picture of {picture.width} x {picture.height} pixels is too large")
        picture = picture.convert("RGBA")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"unreadable picture: {error}") from error
    shrink = min(1.0, SIDE / max(picture.size))
    size = [max(1, round(side * shrink)) for side in picture.size]
    levels = []
    while len(levels) < LEVELS:
        if picture.size != tuple(size):
            picture = picture.resize(size, Image.Resampling.BOX)
        levels.append(np.asarray(picture))
        if size == [1, 1]:
            break
        size = [max(1, side // 2) for side in size]
    return levels


def picture_of(archive: Archive, folder: str, material: dict, materials: list[dict]) -> str | None:
    """The file of a material's picture; a broken path means the only picture that no other material names."""
    if not material.get("map"):
        return None
    found = archive.find(folder, material["map"])
    if found:
        return found
    named = {posixpath.basename(m.get("map", "").replace("\\", "/")).lower() for m in materials}
    free = [f for f in archive.beside(folder) if f.lower().endswith(PICTURES)]
    free = [f for f in free if posixpath.basename(f).lower() not in named]
    return free[0] if len(free) == 1 else None


def albedo(material: dict) -> np.ndarray:
    """One colour for ambient, diffuse and specular; the weights fit the pictures that the authors rendered."""
    zero = np.zeros(3)
    kd = material.get("kd", np.full(3, 0.75))
    return np.minimum(1, 1.05 * kd + 0.15 * material.get("ka", zero) + 0.05 * material.get("ks", zero))


def load(archive: Archive, entry: Entry) -> Mesh:
    """The entry's model as the file has it: no rotation, no scale, normals NaN where missing.

    Raises:
        ValueError: If it has no triangle.
    """
    folder = posixpath.dirname(entry.model)
    text = archive.read(entry.model)
    position, uv, normal, material, names = parse_obj(text)
    if not len(material):
        raise ValueError(f"{entry.id}: no triangles")
    known: dict[str, dict] = {}
    for name in re.findall(rb"^\s*mtllib\s+(.+?)\s*$", text, re.M):
        found = archive.find(folder, name.decode("latin-1"))
        if found:
            known |= parse_mtl(archive.read(found).decode("latin-1"))
    unique = list(dict.fromkeys([*names, ""]))
    slot = np.array([unique.index(name) for name in [*names, ""]], np.int32)  # -1 picks the last: no material
    mesh = Mesh(position, normal, uv, slot[material], *surfaces(archive, folder, [known.get(n, {}) for n in unique]))
    names = tuple(f"{n} {posixpath.basename(known.get(n, {}).get('map', ''))}".lower() for n in unique)
    return untextured(replace(mesh, names=names))


def surfaces(archive: Archive, folder: str, materials: list[dict]) -> tuple[np.ndarray, ...]:
    """factor, texture, cutout, texels, levels, opacity of a list of MTL materials."""
    count = len(materials)
    factor, opacity = np.zeros((count, 3), np.float32), np.ones(count, np.float32)
    texture, cutout = np.full(count, -1, np.int32), np.zeros(count, np.uint8)
    chunks, rows, cache, total = [], [], {}, 0
    for k, material in enumerate(materials):
        opacity[k] = material.get("d", 1.0)
        factor[k] = albedo(material)
        name = picture_of(archive, folder, material, materials)
        if name and name not in cache:
            try:
                levels = mip_chain(archive.read(name))
            except ValueError:
                cache[name] = -1
            else:
                row = [len(levels)]
                for level in levels:
                    row += [total, level.shape[1], level.shape[0]]
                    chunks.append(level.reshape(-1, 4))
                    total += len(chunks[-1])
                rows.append(row + [0] * (1 + 3 * LEVELS - len(row)))
                cache[name] = len(rows) - 1
        if name and cache[name] >= 0:
            texture[k] = cache[name]
            offset, width, height = rows[cache[name]][1:4]
            cutout[k] = np.concatenate(chunks)[offset : offset + width * height, 3].min() < 250
            kd = material.get("kd", np.ones(3))
            # a near-white or black Kd is an exporter's default; a coloured one tints the picture
            factor[k] = 1.08 * (kd if np.ptp(kd) > 0.08 else 1.0)
        elif opacity[k] < 0.999:
            solid = max(float(opacity[k]), 0.25)
            factor[k] = solid * factor[k] + (1 - solid) * GLASS
    texels = np.concatenate(chunks) if chunks else np.zeros((1, 4), np.uint8)
    levels = np.array(rows or [[0] * (1 + 3 * LEVELS)], np.int32)
    return factor, texture, cutout, np.ascontiguousarray(texels), levels, opacity


def untextured(mesh: Mesh) -> Mesh:
    """Triangles without texture coordinates get a plain copy of their material in the picture's mean colour."""
    bare = np.isnan(mesh.uv).any((1, 2))
    uv = np.where(np.isnan(mesh.uv), np.float32(0), mesh.uv)
    uv = np.clip(uv, -1e4, 1e4)  # keeps floor() and int() of the rasteriser in range
    if not (bare & (mesh.texture[mesh.material] >= 0)).any():
        return replace(mesh, uv=uv)
    count = len(mesh.texture)
    both = {n: np.concatenate([getattr(mesh, n)] * 2) for n in ("opacity",)}
    return replace(
        mesh,
        uv=uv,
        material=np.where(bare, mesh.material + count, mesh.material).astype(np.int32),
        factor=np.concatenate([mesh.factor, mesh.albedo().astype(np.float32)]),
        texture=np.concatenate([mesh.texture, np.full(count, -1, np.int32)]),
        cutout=np.concatenate([mesh.cutout, np.zeros(count, np.uint8)]),
        names=mesh.names * 2,
        **both,
    )


def crease_normals(position: np.ndarray, crease: float = 40.0) -> np.ndarray:
    """Normals (T, 3, 3) for a soup: smooth over edges flatter than `crease` degrees, sharp over the others."""
    position = np.ascontiguousarray(position, np.float32)
    edges = np.roll(position, -1, 1) - position
    flat = np.cross(edges[:, 0], edges[:, 1])
    flat = (flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-30)).astype(np.float32)
    length = np.linalg.norm(edges, axis=2) + 1e-12
    cosine = -(edges * np.roll(edges, 1, 1)).sum(2) / (length * np.roll(length, 1, 1))
    angle = np.arccos(cosine.clip(-1, 1)).astype(np.float32)
    extent = float(np.ptp(position.reshape(-1, 3), axis=0).max()) or 1.0
    grid = np.round((position.reshape(-1, 3) - position.min((0, 1))) / extent * 20000).astype(np.int64)
    place = grid @ np.array([1, 1 << 20, 1 << 40])
    order = np.argsort(place, kind="stable")
    start = np.flatnonzero(np.diff(place[order], prepend=-1, append=-1)).astype(np.int64)
    normal = np.empty_like(position)
    pointers = (a.ctypes.data for a in (start, order, flat, angle))
    native.library().crease_normals(len(start) - 1, *pointers, math.cos(math.radians(crease)), normal.ctypes.data)
    return normal
