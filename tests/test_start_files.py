"""The file that a scene begins with is part of what a run is told apart by."""

import pytest
from closed_prior import EllipsoidPrior
from PIL import Image
from tiny_nerf import SMALL, nerf, seeded

from align3d.scenes.nerf.files import write_nerf
from align3d.scenes.ply import write_ply
from align3d.scenes.rings import Ring
from align3d.scenes.splats import ball
from align3d.starts import EMBEDDED, GaussianStart, NerfStart, PictureStart, Stage

FIELD = {name: getattr(SMALL, name) for name in ("hidden", "triplane", "hash", "march")}
KINDS = [
    (GaussianStart, {}, "x.ply", lambda path, i: write_ply(path, ball(8, generator=seeded(i)))),
    (NerfStart, FIELD, "x.safetensors", lambda path, i: write_nerf(path, nerf(seed=i))),
    (PictureStart, {}, "x.png", lambda path, i: Image.new("RGB", (12, 12), (i, 0, 0)).save(path)),
]


@pytest.mark.parametrize(("kind", "options", "name", "write"), KINDS)
def test_a_subject_knows_the_file_that_it_was_made_of(tmp_path, kind, options, name, write):
    stage = Stage(EllipsoidPrior(size=12, views=2), Ring(views=2, size=12))
    found = []
    for i in (0, 1, 0):
        write(tmp_path / name, i)
        start = kind(start=tmp_path / name, **options)
        found.append(start.subject(stage).made_of)
        assert found[-1] == start.inputs() and found[-1].keys() == {"start_blake2b"}
    assert found[0] == found[2] != found[1]
    assert kind(**options).subject(stage).made_of == {} == kind(start=tmp_path / "none", **options).inputs()


def test_the_shipped_generator_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / EMBEDDED).write_text("something else")
    assert GaussianStart(start=EMBEDDED).inputs() == {}
