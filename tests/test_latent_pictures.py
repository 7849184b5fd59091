"""Latents as a scene: a picture, or views that only the prior holds together."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from closed_prior import EllipsoidPrior
from command_checks import enter, refused
from PIL import Image
from safetensors.torch import load_file

from align3d.cli import main
from align3d.rng import Streams
from align3d.scenes.rings import Ring
from align3d.starts import PictureStart, Stage

PAINT = ["optimize", "--scene", "picture", "--prompt", "a red thing", "--prior", "closed_prior:Ellipsoids"]
PAINT += ["--reward", "closed_prior:red", "--out", "run", "--method.guidance", "1", "--updates", "240"]
WHITE = (1.0, 1.0, 1.0)


@pytest.fixture
def here(tmp_path, monkeypatch):
    return enter(tmp_path, monkeypatch)


def subject(start=None, views=3, seed=0):
    return PictureStart(start).subject(Stage(EllipsoidPrior(size=12), Ring(views=views, size=12), WHITE, seed=seed))


def test_a_look_is_the_latents_and_cameras_that_stay():
    one = subject()
    first, later = (one.look(Streams.batch(0, update, 0, 2)) for update in (0, 7))
    assert first.latents.shape == (2, 3, 3, 12, 12) and torch.equal(first.cameras.c2w, later.cameras.c2w)
    for i in range(2):
        (grad,) = torch.autograd.grad(first.latents[i].square().sum(), one.trained.latents, retain_graph=True)
        assert torch.isfinite(grad).all() and (grad.flatten(2).norm(dim=2) > 0).all()
    assert torch.equal(subject().trained.latents, one.trained.latents)
    assert not torch.equal(subject(seed=1).trained.latents, one.trained.latents)


def test_views_are_painted(here, capsys):
    assert main([*PAINT, "--cameras.views", "2", "--cameras.size", "12"]) == 0, capsys.readouterr().err
    colours = []
    for name in ("picture-0.png", "picture-1.png"):
        picture = Image.open(Path("run", name))
        assert picture.size == (12, 12) and picture.mode == "RGB"
        colours.append(picture.crop((5, 4, 8, 9)).resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)))
    assert all(r > g + 60 and r > b + 60 for r, g, b in colours), colours
    assert load_file("run/latents.safetensors")["latents"].shape == (1, 2, 3, 12, 12)
    assert {path.name for path in Path("run").iterdir()} >= {"report.html", "samples"}
    assert not Path("run/turntable.webp").exists() and not Path("run/views.png").exists()
    samples = json.loads(Path("run/samples/step-000240/samples.json").read_text())
    assert samples["mean"]["closed_prior:red"] > 0.05


@pytest.mark.parametrize(
    ("mode", "size", "suffix", "said"),
    [
        ("RGBA", (30, 30), "png", "brought from 30 x 30 to 12 x 12 pixels and put on --background where it is"),
        ("RGBA", (12, 12), "png", "is put on --background where it is transparent"),
        ("L", (7, 7), "jpg", "brought from 7 x 7 to 12 x 12 pixels"),
        ("RGB", (12, 12), "jpg", ""),
        ("RGB", (12, 12), "webp", ""),
    ],
)
def test_it_begins_with_a_picture_of_any_size_and_kind(here, capsys, mode, size, suffix, said):
    """A line says what had to be done to it."""
    colour = {"RGBA": (255, 0, 0, 0), "L": 128, "RGB": (0, 0, 255)}[mode]
    Image.new(mode, size, colour).save(f"start.{suffix}")
    one = subject(Path(f"start.{suffix}"), views=1)
    shown = one.scene().rgb[0, 0].mean((1, 2))
    err = capsys.readouterr().err
    assert len(err.splitlines()) == bool(said) and said in err
    wanted = {"RGBA": (1, 1, 1), "L": (0.5, 0.5, 0.5), "RGB": (0, 0, 1)}[mode]
    torch.testing.assert_close(shown, torch.tensor(wanted, dtype=shown.dtype), rtol=0, atol=0.03)


def test_a_picture_is_edited(here, capsys):
    """DDS compares with the picture as it was: what the texts do not speak of stays."""
    original = Image.new("RGB", (12, 12), (225, 25, 25))
    original.paste((90, 90, 90), (0, 0, 12, 3))
    original.save("start.png")
    edit = [*PAINT, "--cameras.views", "1", "--cameras.size", "12", "--method", "dds", "--method.source", "a red thing"]
    edit += ["--prompt", "a blue thing", "--scene.start", "start.png", "--scene.rate", "0.02"]
    assert main([*edit, "--updates", "150"]) == 0, capsys.readouterr().err
    before, after = (torch.from_numpy(np.array(Image.open(file))) for file in ("start.png", "run/picture.png"))
    change = after.float() - before.float()
    red, _, blue = change[5:9, 4:8].mean((0, 1))
    assert blue > 25 and red < -25, change[5:9, 4:8].mean((0, 1))
    assert change[:2].abs().mean() < 0.4 * blue, "what both texts leave open stays"


def test_the_original_stays_as_it_was(here):
    Image.new("RGB", (12, 12), (0, 0, 255)).save("start.png")
    one = subject(Path("start.png"), views=2)
    look = one.look(Streams.batch(0, 0, 0, 3))
    before = one.source(Streams.batch(0, 0, 0, 3), look)
    assert before.shape == look.latents.shape == (3, 2, 3, 12, 12) and not before.requires_grad
    with torch.no_grad():
        one.trained.latents.zero_()
    torch.testing.assert_close(
        before[1, 0], look.latents[1, 0].detach() * 0 + torch.tensor([-1.0, -1, 1])[:, None, None]
    )
    assert subject().source is None, "there is nothing to edit in noise"


def test_bad_starts_are_refused(here, capsys):
    Image.new("RGB", (30, 20)).save("wide.png")
    assert "wide.png has 30 x 20 pixels, the prior paints squares of 12 x 12" in refused(
        capsys, [*PAINT, "--scene.start", "wide.png"]
    )
    edit = [*PAINT, "--method", "dds", "--method.source", "a red thing"]
    assert "give --scene.start FILE" in refused(capsys, edit)
    assert "scene.rate must be 0 to 10" in refused(capsys, [*PAINT, "--scene.rate", "nan"])
    Path("bad.png").write_text("no picture")
    assert "bad.png" in refused(capsys, [*PAINT, "--scene.start", "bad.png"])
    assert "no picture nothing.png" in refused(capsys, [*PAINT, "--scene.start", "nothing.png"])
    assert "scene.strength must be 0 to 100" in refused(capsys, [*PAINT, "--scene.strength", "-1"])
