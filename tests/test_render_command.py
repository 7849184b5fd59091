"""`align3d render` draws what `align3d optimize` writes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from command_checks import enter, refused
from PIL import Image
from safetensors.torch import save_file
from tiny_nerf import nerf

from align3d.cli import main
from align3d.scenes.gaussians import Gaussians
from align3d.scenes.nerf.files import write_nerf
from align3d.scenes.pictures import save_views
from align3d.scenes.ply import write_ply


@pytest.fixture
def here(tmp_path, monkeypatch):
    return enter(tmp_path, monkeypatch)


def test_a_field_is_drawn_as_what_it_is(here, capsys):
    made = nerf()
    write_nerf(here / "scene.safetensors", made)
    assert main(["render", "scene.safetensors", "--out", "x.png", "--size", "20", "--views", "3"]) == 0
    assert capsys.readouterr().out == "x.png  a radiance field\n"
    with torch.no_grad():
        save_views(here / "y.png", made.scene(), [0.0, 120.0, 240.0], size=20, elevation=20.0, radius=1.4)
    mine, other = (np.asarray(Image.open(name)) for name in ("x.png", "y.png"))
    assert mine.shape == (20, 60, 3) and mine.std() > 1 and np.array_equal(mine, other)
    assert main(["render", "scene.safetensors", "--out", "x.gif", "--size", "12", "--frames", "2"]) == 0
    assert Image.open("x.gif").n_frames == 2


def test_the_field_of_view_can_be_said(here, capsys):
    """Half of the tangent shows the same from afar: to twice the size, in the middle of the picture."""
    rng = torch.Generator().manual_seed(0)
    means = 0.1 * torch.randn(1, 50, 3, generator=rng) * torch.tensor([1.0, 1.0, 1e-3])
    flat = {"quats": torch.tensor([1.0, 0, 0, 0]).expand(1, 50, 4), "opacities": torch.full((1, 50), 0.9)}
    colors, scales = torch.rand(1, 50, 3, generator=rng), torch.full((1, 50, 3), 0.02)
    write_ply("x.ply", Gaussians(means=means, scales=scales, colors=colors, **flat))
    half = math.degrees(2 * math.atan(math.tan(math.radians(20)) / 2))
    seen = []
    for name, fov in (("wide", 40.0), ("narrow", half)):
        args = ["render", "x.ply", "--out", f"{name}.png", "--fov", f"{fov}", "--size", "64", "--elevation", "0"]
        assert main([*args, "--views", "1"]) == 0
        seen.append(np.asarray(Image.open(f"{name}.png")).astype(float))
    wide, narrow = seen
    small = narrow.reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(wide[16:48, 16:48] - small).mean() < 4 < np.abs(wide - narrow).mean()
    args = ["render", "x.ply", "--out", "y.png", "--fov"]
    capsys.readouterr()
    assert "fov must be 1 to 170, got 180.0" in refused(capsys, [*args, "180"])


def test_what_is_no_scene_is_refused(here, capsys):
    save_file({"latents": torch.zeros(1, 2)}, "latents.safetensors")
    render = ["render", "latents.safetensors", "--out", "x.png"]
    assert "latents.safetensors holds no field that can be read" in refused(capsys, render)
    Path("cut.safetensors").write_bytes(Path("latents.safetensors").read_bytes()[:20])
    assert "cut.safetensors" in refused(capsys, ["render", "cut.safetensors", "--out", "x.png"])
    write_nerf(here / "scene.safetensors", nerf())
    wrong = ["render", "scene.safetensors", "--out", "x.png", "--eps2d", "0.3"]
    assert "--eps2d is for Gaussians, and scene.safetensors is no .ply file" in refused(capsys, wrong)
    assert "no scene file nothing.safetensors" in refused(capsys, ["render", "nothing.safetensors", "--out", "x.png"])
