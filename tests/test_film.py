"""How a scene came to be: frames that are kept along a run, and the film of them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_checks import enter, refused, with_small_pictures
from PIL import Image

from align3d.cli import main
from align3d.film import HOLD, STILL, TURN, Film, Filming
from align3d.report import write_report
from align3d.scenes import video
from align3d.subjects import Shown
from align3d.types import Views

OPTIMIZE = ["optimize", "--prompt", "a red thing", "--prior", "closed_prior:Ellipsoids", "--out", "run"]
OPTIMIZE += ["--method.guidance", "1", "--cameras.size", "12", "--cameras.views", "3", "--film.size", "24"]
BALL = ["--scene.num", "64", "--reward", "closed_prior:red"]
FEW = ["--film.frames", "3", "--loop.checkpoint-every", "2", "--loop.sample-every", "0"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, and small pictures."""
    with_small_pictures(monkeypatch)
    return enter(tmp_path, monkeypatch)


class Compass:
    """A subject whose pixels tell the camera's azimuth in degrees, halved, and the background."""

    def scene(self):
        return self

    def render(self, cameras, want, background):
        assert not torch.is_grad_enabled()
        eye = cameras.c2w[..., :3, 3]
        azimuth = torch.rad2deg(torch.atan2(eye[..., 0], eye[..., 2])) % 360
        rgb = torch.stack([azimuth / 510, *(torch.full_like(azimuth, x) for x in background[1:])], -1)
        return Views(cameras, rgb=rgb[..., None, None].expand(*rgb.shape, cameras.height, cameras.width).clone())


def centre(picture):
    pixels = np.asarray(picture.convert("RGB"), dtype=float)
    return pixels[pixels.shape[0] // 2, pixels.shape[1] // 2]


def kept(out="run"):
    return {path.name: path.read_bytes() for path in sorted(Path(out, "frames").iterdir())}


def steps(out="run"):
    return [int(name[5:11]) for name in kept(out)]


@pytest.mark.parametrize("updates", [1, 2, 3, 5, 31, 59, 60, 61, 119, 120, 200, 12345])
@pytest.mark.parametrize("frames", [2, 3, 60])
def test_a_film_has_enough_frames_and_not_too_many(tmp_path, updates, frames):
    filming = Filming(Film(frames), tmp_path, updates)
    due = [done for done in range(updates + 1) if filming.due(done)]
    assert due[0] == 0 and len(due) <= frames and len(set(np.diff(due))) <= 1
    assert 2 * len(due) >= min(frames, updates + 1)
    longer = Filming(Film(frames), tmp_path, 3 * updates)
    assert {done for done in due if longer.due(done)} == {d for d in range(updates + 1) if longer.due(d)}


def test_the_camera_turns_and_the_last_frame_stays(tmp_path, monkeypatch):
    filming = Filming(Film(frames=4, size=16), tmp_path, 11, background=(1.0, 0.5, 0.25))
    for done in range(11):
        if filming.due(done):
            filming(done, Compass())
    assert steps(tmp_path) == [0, 4, 8]
    frames = [Image.open(path) for path in sorted((tmp_path / "frames").iterdir())]
    for i, frame in enumerate(frames):
        np.testing.assert_allclose(centre(frame), [TURN * i / 2, 127.5, 64], atol=3)
    monkeypatch.setattr("align3d.scenes.video.problem", lambda: "no av")
    shown = []
    monkeypatch.setattr("align3d.scenes.pictures.save_turntable", lambda path, frames, *_, **__: shown.append(frames))
    assert filming.develop(Compass(), 11) == tmp_path / "optimization.webp"
    assert len(shown[0]) == 4 + HOLD
    np.testing.assert_allclose(centre(shown[0][-1])[0], TURN * 11 / 4 / 2, atol=3, err_msg="the end is shown too")
    filming.develop(Compass(), 6)
    assert len(shown[1]) == 3 + HOLD and steps(tmp_path) == [0, 4], "of an update that is still to come"


def test_a_run_that_ends_by_the_clock_thins_its_frames_out(tmp_path):
    filming = Filming(Film(frames=4, size=16), tmp_path, None)
    for done in range(14):
        if filming.due(done):
            filming(done, Compass())
    assert steps(tmp_path) == [0, 1, 2, 3, 4, 6, 8, 12]
    assert filming.develop(Compass(), 13).is_file() and steps(tmp_path) == [0, 4, 8, 12]
    np.testing.assert_allclose(centre(Image.open(tmp_path / "frames" / "step-000012.webp"))[0], STILL / 2, atol=3)


def test_frames_that_cannot_be_read_are_left_out(tmp_path):
    filming = Filming(Film(frames=8, size=16), tmp_path, 4)
    for done in range(5):
        filming(done, Compass())
    (tmp_path / "frames" / "step-000001.webp").write_bytes(b"")
    (tmp_path / "frames" / "step-000002.webp").write_bytes((tmp_path / "frames" / "step-000003.webp").read_bytes()[:40])
    Image.new("RGB", (2000, 8)).save(tmp_path / "frames" / "step-000003.webp")
    assert filming.develop(Compass(), 4).is_file() and steps(tmp_path) == [0, 4]


def test_pictures_are_their_own_frames(tmp_path):
    class Flat:
        def __init__(self, *shape):
            self.shape = shape

        def scene(self):
            return Shown(torch.rand(*self.shape), flat=True)

    filming = Filming(Film(frames=8, size=32), tmp_path, 4)
    for shape, size in (((1, 1, 3, 10, 14), (42, 30)), ((1, 3, 3, 40, 50), (150, 40)), ((1, 4, 3, 16, 512), (1024, 8))):
        assert filming.frame(0, Flat(*shape)).size == size


@pytest.mark.parametrize("av", [True, False])
@pytest.mark.parametrize("scene", [BALL, ["--scene", "picture"]])
def test_a_run_ends_in_a_film_and_goes_on_to_the_same_bits(here, capsys, monkeypatch, av, scene):
    if av:
        pytest.importorskip("av")
    else:
        monkeypatch.setitem(sys.modules, "av", None)
    name = "optimization.mp4" if av else "optimization.webp"
    whole = [*OPTIMIZE, *scene, *FEW, "--updates", "9"]
    assert main(whole) == 0, capsys.readouterr().err
    assert steps() == [0, 4, 8] and json.loads(Path("run/config.json").read_text())["config"]["film"]["frames"] == 3
    Path("stop.py").write_text(
        "import pathlib, signal\ncalls = []\n"
        "def stop(views, prompts):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 6 and pathlib.Path('now').exists():\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    return views.rgb.mean((2, 3, 4))\n"
    )
    choose = ["--weighting", "best", "--candidates", "2", "--method.explore.guidance", "1", "--reward", "stop:stop"]
    assert main([*whole, *choose, "--out", "one"]) == 0, capsys.readouterr().err
    Path("now").touch()
    sys.modules.pop("stop")
    again = [*whole, *choose, "--out", "two"]
    assert main(again) == 130, capsys.readouterr().err
    assert 0 < len(steps("two")) < 3 and Path("two", name).is_file(), "a run that was interrupted has one"
    assert main([*again, "--resume"]) == 0, capsys.readouterr().err
    assert kept("one") == kept("two") and Path("one", name).read_bytes() == Path("two", name).read_bytes()
    text = Path("run/report.html").read_text()
    assert "How it came to be" in text and ("<video" in text) is av


def test_a_longer_run_keeps_what_it_has(here, capsys):
    short = [*OPTIMIZE, *BALL, *FEW]
    assert main([*short, "--updates", "4"]) == 0, capsys.readouterr().err
    assert steps() == [0, 2, 4]
    assert main([*short, "--updates", "8", "--resume", "--film.size", "16"]) == 0, capsys.readouterr().err
    assert steps() == [0, 4, 8]
    assert main([*short, "--updates", "9", "--resume", "--film.frames", "0"]) == 0, capsys.readouterr().err
    assert steps() == [0, 4, 8]


def test_a_film_that_fails_does_not_cost_the_scene(here, capsys, monkeypatch):
    def broken(*_):
        raise RuntimeError("encoder")

    monkeypatch.setattr(video, "write_mp4", broken)
    monkeypatch.setattr("align3d.scenes.pictures.write_mp4", broken)
    monkeypatch.setattr(video, "problem", lambda: None)
    monkeypatch.setattr("align3d.scenes.pictures.problem", lambda: None)
    assert main([*OPTIMIZE, *BALL, *FEW, "--updates", "1"]) == 0
    assert "align3d: no film: encoder" in capsys.readouterr().err
    assert Path("run/scene.ply").is_file() and Path("run/report.html").is_file()


def test_what_cannot_be_filmed_is_refused(here, capsys):
    assert "film.frames must be 2 to 1000, or 0 for no film, got 1" in refused(
        capsys, [*OPTIMIZE, "--film.frames", "1"]
    )
    assert "film.size must be 16 to 1024 pixels, got 9" in refused(capsys, [*OPTIMIZE, "--film.size", "9"])


def test_a_report_takes_no_film_from_outside(tmp_path):
    (tmp_path / "run").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.webp")
    (tmp_path / "run" / "optimization.webp").symlink_to(tmp_path / "secret.webp")
    assert "How it came to be" not in write_report(tmp_path / "run").read_text()
