"""The files that an optimisation ends in."""

import pytest
from closed_prior import EllipsoidPrior

from align3d import files
from align3d.previews import finish
from align3d.scenes.nerf.options import March, TriPlane
from align3d.scenes.pictures import turntable
from align3d.scenes.rings import Ring
from align3d.starts import GaussianStart, NerfStart, PictureStart, Stage

FIELD = NerfStart(hidden=4, triplane=TriPlane(side=8, features=2), march=March(samples=8, cells=4), mesh=12, texture=16)
SEEN = {"views.png", "turntable.webp"}
MESH = {"mesh.glb", "mesh.obj", "mesh.mtl", "mesh.png"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr("align3d.scenes.pictures.turntable", lambda scene, *_, **more: turntable(scene, 2, 24, **more))


def subject(start):
    return start.subject(Stage(EllipsoidPrior(size=12, views=2), Ring(views=2, size=12)))


@pytest.mark.parametrize(
    ("start", "names"),
    [
        (GaussianStart(num=16), {"scene.ply", *SEEN}),
        (FIELD, {"scene.safetensors", *MESH, *SEEN}),
        (PictureStart(), {"picture-0.png", "picture-1.png", "latents.safetensors"}),
    ],
)
def test_every_file_is_put_in_its_place_once(tmp_path, monkeypatch, start, names):
    if "mesh.glb" in names:
        for package in ("skimage", "trimesh", "xatlas"):
            pytest.importorskip(package)
    placed, temporary = [], files.temporary

    def named(path):
        placed.append(path.name)
        return temporary(path)

    monkeypatch.setattr(files, "temporary", named)
    finish(tmp_path, subject(start))
    assert sorted(placed) == sorted(names) == sorted(path.name for path in tmp_path.iterdir())
