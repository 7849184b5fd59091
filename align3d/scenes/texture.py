"""A picture on a mesh: its surface laid out flat, and the colours of its points painted there.

Needs the extra `mesh` (xatlas, trimesh). The picture's first row is at the top, where v is 1, as .obj files have it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from align3d.scenes.mesh import AT_ONCE, Mesh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jaxtyping import Float, Int, UInt8
    from torch import Tensor

PIECE = 256  # faces that are laid out together, at most: the time that takes grows faster than they do
PADDING = 3  # texels between charts
BATCH = 1 << 21  # texels that are looked at together
NAME = "mesh"  # of the files, without extensions: the .obj file names the .mtl file, and that the .png file


@dataclass(frozen=True)
class TexturedMesh:
    """Triangles, counter-clockwise seen from outside, and a picture on them; a vertex is there once for each chart."""

    vertices: Float[np.ndarray, "N 3"]  # scene units
    faces: Int[np.ndarray, "F 3"]
    uv: Float[np.ndarray, "N 2"]  # of the vertices in the picture, 0 to 1, from its lower left corner
    image: UInt8[np.ndarray, "S S 3"]


def textured(mesh: Mesh, color: Callable[[Tensor], Tensor], size: int) -> TexturedMesh:
    """A mesh with the colours of its surface in a picture.

    Args:
        mesh: Its own colours are not looked at.
        color: RGB in [0, 1], of points (M, 3) in scene units on the CPU.
        size: Side of the picture.

    Raises:
        ModuleNotFoundError: If xatlas is missing.
    """
    vertices, faces, uv = laid_out(mesh, size)
    return TexturedMesh(vertices, faces, uv, painted(vertices[faces], uv[faces], color, size))


def laid_out(mesh: Mesh, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, faces and the vertices' places in the picture, 0 to 1: no two faces overlap there."""
    import xatlas

    atlas, found = xatlas.Atlas(), []
    for piece in pieces(mesh.vertices[mesh.faces].mean(1)):
        used, faces = np.unique(mesh.faces[piece], return_inverse=True)
        found.append(mesh.vertices[used])
        atlas.add_mesh(found[-1].astype(np.float32), faces.reshape(-1, 3).astype(np.uint32))
    pack = xatlas.PackOptions()
    pack.resolution, pack.padding = size, PADDING
    atlas.generate(xatlas.ChartOptions(), pack)
    vertices, faces, uv, before = [], [], [], 0
    for i, own in enumerate(found):
        which, corners, place = atlas[i]
        vertices.append(own[which])
        faces.append(corners.astype(np.int64) + before)
        uv.append(place.astype(np.float64))
        before += len(which)
    return np.concatenate(vertices), np.concatenate(faces), np.concatenate(uv)


def pieces(centres: Float[np.ndarray, "F 3"]) -> list[Int[np.ndarray, "_"]]:
    """Faces by number, in pieces that lie together."""
    done, todo = [], [np.arange(len(centres))]
    while todo:
        piece = todo.pop()
        if len(piece) <= PIECE:
            done.append(piece)
            continue
        places = centres[piece]
        order = np.argsort(places[:, np.ptp(places, axis=0).argmax()], kind="stable")
        todo += [piece[order[len(piece) // 2 :]], piece[order[: len(piece) // 2]]]
    return done


def painted(
    corners: Float[np.ndarray, "F 3 3"],
    uv: Float[np.ndarray, "F 3 2"],
    color: Callable[[Tensor], Tensor],
    size: int,
) -> UInt8[np.ndarray, "S S 3"]:
    """The picture: colours at the middles of its texels, where there is a face; elsewhere that of the nearest one.

    Args:
        corners: Of the faces, scene units.
        uv: The same in the picture.
        color: RGB in [0, 1], of points.
        size: Side of the picture.
    """
    from scipy.ndimage import distance_transform_edt

    image, seen = np.zeros((size * size, 3), np.uint8), np.zeros(size * size, bool)
    flat = np.stack([uv[..., 0], 1 - uv[..., 1]], -1) * size  # right and down, texels
    for texel, face, weight in covered(flat, size):
        points = torch.from_numpy(np.einsum("mc,mcx->mx", weight, corners[face])).float()
        with torch.no_grad():
            rgb = torch.cat([color(part) for part in points.split(AT_ONCE)]).numpy()
        image[texel] = rgb.clip(0, 1) * 255 + 0.5
        seen[texel] = True
    if not seen.any():  # a picture with fewer texels than the mesh has charts
        return image.reshape(size, size, 3)
    nearest = distance_transform_edt(~seen.reshape(size, size), return_distances=False, return_indices=True)
    return image.reshape(size, size, 3)[tuple(nearest)]


def covered(
    flat: Float[np.ndarray, "F 3 2"], size: int
) -> Iterator[tuple[Int[np.ndarray, "M"], Int[np.ndarray, "M"], Float[np.ndarray, "M 3"]]]:
    """Which texels' middles lie in which faces: numbers of texels, of faces, and the weights of the faces' corners."""
    low = np.ceil(flat.min(1) - 0.5).astype(np.int64).clip(0)
    wide, high = (np.floor(flat.max(1) - 0.5).astype(np.int64).clip(max=size - 1) - low + 1).clip(0).T
    ends = np.cumsum(wide * high)
    a, b, c = flat.swapaxes(0, 1)
    area = cross(b - a, c - a)
    first = 0
    while first < len(flat):
        last = max(first + 1, int(np.searchsorted(ends, (ends[first - 1] if first else 0) + BATCH, side="right")))
        count = (wide * high)[first:last]
        face = np.repeat(np.arange(first, last), count)
        place = np.arange(len(face)) - np.repeat(np.cumsum(count) - count, count)
        x, y = low[face, 0] + place % wide[face], low[face, 1] + place // wide[face]
        middle = np.stack([x, y], -1) + 0.5
        with np.errstate(divide="ignore", invalid="ignore"):  # faces without an area
            one = cross(c[face] - b[face], middle - b[face]) / area[face]
            two = cross(a[face] - c[face], middle - c[face]) / area[face]
            weight = np.stack([one, two, 1 - one - two], -1)
        inside = (weight >= 0).all(1)  # not so for NaN
        yield (y * size + x)[inside], face[inside], weight[inside]
        first = last


def cross(a: Float[np.ndarray, "M 2"], b: Float[np.ndarray, "M 2"]) -> Float[np.ndarray, "M"]:
    """Twice the area between pairs of vectors."""
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def files(mesh: TexturedMesh) -> dict[str, bytes]:
    """The mesh as files, by name: mesh.glb, which holds its picture, and mesh.obj with mesh.mtl and mesh.png.

    Raises:
        ModuleNotFoundError: If trimesh is missing.
    """
    import trimesh
    from trimesh.exchange.obj import export_obj
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial, SimpleMaterial

    def dressed(material: Any) -> Any:
        visual = TextureVisuals(mesh.uv, material=material)
        return trimesh.Trimesh(mesh.vertices, mesh.faces, visual=visual, process=False)

    picture = Image.open(io.BytesIO(png(mesh.image)))  # in its own format, which trimesh then takes
    white = [255, 255, 255, 255]
    dull = PBRMaterial(baseColorTexture=picture, baseColorFactor=white, metallicFactor=0.0, roughnessFactor=1.0)
    glb = dressed(dull).export(file_type="glb")
    plain = SimpleMaterial(image=picture, diffuse=white, ambient=white, specular=[0, 0, 0, 255], name=NAME)
    options = {"digits": 6, "mtl_name": f"{NAME}.mtl", "header": None}
    obj, more = export_obj(dressed(plain), include_normals=False, return_texture=True, **options)
    return {f"{NAME}.glb": glb, f"{NAME}.obj": obj.encode(), **more}


def png(image: UInt8[np.ndarray, "S S 3"]) -> bytes:
    """A picture as a file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
