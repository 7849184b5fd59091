"""Pictures on meshes: what is painted is what the field says, and files hold it as others read it."""

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_nerf import SMALL

from align3d.scenes.mesh import Mesh, extract, write_mesh
from align3d.scenes.nerf.files import meshes
from align3d.scenes.nerf.nerf import Nerf
from align3d.scenes.texture import PIECE, covered, files, laid_out, painted, pieces, textured

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("skimage")
pytest.importorskip("xatlas")
SIZE = 256


def ball(x):
    return 100 * torch.sigmoid((0.3 - x.norm(dim=1)) * 60)


def striped(x):
    """Colours that change faster than a coarse mesh has vertices, and differ on all sides."""
    waves = 0.5 + 0.5 * torch.sin(40 * x)
    return 0.7 * waves + 0.3 * (x + 0.5)


@pytest.fixture(scope="module")
def coarse():
    return extract(ball, striped, 10, 12, level=50.0)


@pytest.fixture(scope="module")
def dressed(coarse):
    return textured(coarse, striped, SIZE)


def cast(vertices, faces, axis, sign, side=36):
    """Parallel rays along an axis, one for each pixel: the first face that each hits, and the weights of its corners.

    Looks at every pair of a ray and a face.
    """
    flat = np.delete(vertices, axis, axis=1)[faces]  # (F, 3, 2)
    grid = (np.arange(side) + 0.5) / side - 0.5
    rays = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 1, 2)
    a, b, c = flat[None, :, 0], flat[None, :, 1], flat[None, :, 2]

    def area(p, q, r):
        return (q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1]) - (q[..., 1] - p[..., 1]) * (r[..., 0] - p[..., 0])

    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.stack([area(b, c, rays), area(c, a, rays), area(a, b, rays)], -1) / area(a, b, c)[..., None]
    near = sign * np.einsum("rfc,fc->rf", weight, vertices[faces][..., axis])
    near = np.where((weight >= 0).all(-1), near, -np.inf)
    hit = near.max(1) > -np.inf
    face = near.argmax(1)
    return face[hit], weight[np.arange(len(face)), face][hit]


def looked_up(image, uv):
    """A picture between its texels, as renderers read it; v goes up."""
    height, width = image.shape[:2]
    x, y = uv[:, 0] * width - 0.5, (1 - uv[:, 1]) * height - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    found = 0
    for i in (0, 1):
        for j in (0, 1):
            part = np.abs(1 - i - (x - left)) * np.abs(1 - j - (y - top))
            texel = image[(top + j).clip(0, height - 1), (left + i).clip(0, width - 1)]
            found = found + part[:, None] * texel.astype(float) / 255
    return found


def loaded(data, kind, more=None):
    """Vertices, faces, places in the picture and the picture, as trimesh reads a file back."""
    resolver = None if more is None else trimesh.resolvers.ZipResolver({k: io.BytesIO(v) for k, v in more.items()})
    back = trimesh.load(io.BytesIO(data), file_type=kind, force="mesh", process=False, resolver=resolver)
    material = back.visual.material
    image = material.image if kind == "obj" else material.baseColorTexture
    return (
        np.asarray(back.vertices),
        np.asarray(back.faces),
        np.asarray(back.visual.uv),
        np.asarray(image.convert("RGB")),
    )


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_a_picture_shows_the_field_better_than_vertices_do(coarse, dressed, kind):
    packed = files(dressed)
    vertices, faces, uv, image = loaded(packed[f"mesh.{kind}"], kind, packed)
    assert len(faces) == len(coarse.faces) < 1500 and image.shape == (SIZE, SIZE, 3)
    for axis, sign in ((0, 1), (1, 1), (2, 1), (2, -1)):
        face, weight = cast(vertices, faces, axis, sign)
        points = np.einsum("rc,rcx->rx", weight, vertices[faces[face]])
        assert len(points) > 300 and (sign * points[:, axis] > -0.05).all(), "rays see the near side"
        want = striped(torch.from_numpy(points)).numpy()
        shown = looked_up(image, np.einsum("rc,rcx->rx", weight, uv[faces[face]]))
        face, weight = cast(coarse.vertices, coarse.faces, axis, sign)
        between = np.einsum("rc,rcx->rx", weight, coarse.colors[coarse.faces[face]])
        error, plain = np.abs(shown - want).mean(), np.abs(between - want).mean()
        assert error < 0.02 and error < 0.2 * plain, (error, plain)


def test_the_mesh_stays_what_it_is(coarse, dressed):
    assert dressed.faces.shape == coarse.faces.shape
    ordered = [np.sort(np.round(mesh.vertices[mesh.faces].reshape(-1, 9), 6), axis=0) for mesh in (coarse, dressed)]
    np.testing.assert_array_equal(*ordered)
    a, b, c = (dressed.vertices[dressed.faces[:, i]] for i in range(3))
    assert (a * np.cross(b, c)).sum() / 6 == pytest.approx(4 / 3 * np.pi * 0.3**3, rel=0.05), "faces look outwards"


def test_no_two_faces_share_a_texel(dressed):
    flat = np.stack([dressed.uv[..., 0], 1 - dressed.uv[..., 1]], -1)[dressed.faces] * SIZE
    texels = np.concatenate([texel for texel, _, _ in covered(flat, SIZE)])
    count = np.bincount(texels, minlength=SIZE * SIZE)
    assert (count > 1).sum() < 0.002 * (count > 0).sum() and 0.4 < (count > 0).mean() < 1
    assert dressed.uv.min() >= 0 and dressed.uv.max() <= 1


@pytest.mark.parametrize("batch", [1, 100, 1 << 21])
def test_texels_are_covered_as_every_pair_says(monkeypatch, batch):
    monkeypatch.setattr("align3d.scenes.texture.BATCH", batch)
    flat = np.random.default_rng(0).uniform(-3, 15, (20, 3, 2))
    flat[3, 1] = flat[3, 0]  # without an area
    found = [np.concatenate(part) for part in zip(*covered(flat, 12), strict=True)]
    want = set()
    for face, (a, b, c) in enumerate(flat):
        corners = np.vstack([np.stack([a, b, c], 1), np.ones(3)])
        for texel in range(144) if abs(np.linalg.det(corners)) > 1e-9 else ():
            weight = np.linalg.solve(corners, [texel % 12 + 0.5, texel // 12 + 0.5, 1])
            if (weight >= 0).all():
                want.add((texel, face))
                at = (found[0] == texel) & (found[1] == face)
                np.testing.assert_allclose(found[2][at][0], weight, atol=1e-9)
    assert set(zip(*found[:2], strict=True)) == want and len(found[0]) == len(want)


def test_what_is_beside_a_face_has_its_colour():
    corners = np.array([[[0.0, 0, 0], [0.4, 0, 0], [0, 0.4, 0]]])
    uv = np.array([[[0.25, 0.25], [0.75, 0.25], [0.25, 0.75]]])
    image = painted(corners, uv, lambda x: x + 0.5, 16).astype(int)
    inside = [(x, y) for x in range(4, 12) for y in range(4, 12) if x + y <= 14]  # v is up
    for x, y in inside:
        at = [(x + 0.5 - 4) / 8 * 0.4, (y + 0.5 - 4) / 8 * 0.4, 0]
        np.testing.assert_allclose(image[15 - y, x], 255 * (np.array(at) + 0.5), atol=1)
    for x, y in ((0, 0), (3, 8), (15, 0), (15, 15)):
        near = min(inside, key=lambda p: (p[0] - x) ** 2 + (p[1] - y) ** 2)
        np.testing.assert_allclose(image[15 - y, x], image[15 - near[1], near[0]], atol=20)
    assert not painted(corners, uv / 1e3, lambda x: x + 0.5, 4).any(), "no texel, no colour, no error"


def test_pieces_are_small_and_hold_every_face_once():
    centres = np.random.default_rng(0).normal(size=(5 * PIECE + 7, 3))
    found = pieces(centres)
    assert max(map(len, found)) <= PIECE and np.array_equal(np.sort(np.concatenate(found)), np.arange(len(centres)))
    wide = [np.ptp(centres[piece], axis=0).prod() for piece in found]
    assert max(wide) < 0.5 * np.ptp(centres, axis=0).prod(), "what is in one lies together"
    one = Mesh(np.eye(3), np.array([[0, 1, 2]]), np.zeros((3, 3)))
    assert len(laid_out(one, 16)[0]) == 3


def test_the_same_mesh_is_the_same_file(coarse, dressed):
    assert files(textured(coarse, striped, SIZE)) == files(dressed)


@pytest.mark.parametrize("texture", [0, 32])
def test_a_field_ends_in_the_files_that_are_asked_for(tmp_path, capsys, monkeypatch, texture):
    made = Nerf.begun(SMALL, torch.Generator().manual_seed(0), mesh=12, texture=texture)
    found = meshes(made)
    assert list(found) == ["mesh.glb", "mesh.obj", "mesh.png", "mesh.mtl"][: 4 if texture else 2]
    for name, write in found.items():
        write(tmp_path / name)
    back = trimesh.load(tmp_path / "mesh.obj", force="mesh", process=False)
    assert back.visual.kind == ("texture" if texture else "vertex")
    if texture:
        assert Image.open(tmp_path / "mesh.png").size == (texture, texture)
        assert np.abs(np.asarray(back.visual.material.image.convert("RGB"), float) - 127.5).max() < 40
    monkeypatch.setitem(sys.modules, "xatlas", None)
    assert list(meshes(made)) == ["mesh.glb", "mesh.obj"]
    said = capsys.readouterr().err
    assert ("vertices alone: xatlas is not installed" in said) is bool(texture)


def test_vertices_keep_their_colours(tmp_path, coarse):
    write_mesh(tmp_path / "x.glb", coarse)
    assert trimesh.load(tmp_path / "x.glb", force="mesh", process=False).visual.kind == "vertex"
