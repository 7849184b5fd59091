"""Pictures: pixel values, layout of sheets, turntables, files."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from align3d.scenes import pictures
from align3d.scenes.pictures import look, save_sheet, save_turntable, save_views, sheet, to_uint8, turntable
from align3d.types import Views


class Compass:
    """A scene whose pixels tell where the camera is: red is its x, green its z, blue its y, over the radius 1.4."""

    def __init__(self):
        self.views = []

    def render(self, cameras, want=("rgb", "alpha"), background=(1.0, 1.0, 1.0)):
        assert not torch.is_grad_enabled() and cameras.c2w.shape[0] == 1
        self.views.append(cameras.c2w.shape[1])
        eye = cameras.c2w[:, :, :3, 3][:, :, [0, 2, 1]] / 1.4
        rgb = (0.5 + eye / 2)[..., None, None].expand(*eye.shape, cameras.height, cameras.width)
        return Views(cameras, rgb=rgb.clone())


def pixel(image, x=0, y=0):
    return np.asarray(image.convert("RGB"), dtype=int)[y, x].tolist()


def test_pixels_are_rounded_cut_and_channels_last():
    x = torch.tensor([0.0, 0.5, 1.0, -3.0, 7.0, float("nan")]).view(1, 2, 3)
    x = torch.stack([x, x, x], dim=1).requires_grad_()
    got = to_uint8(x)
    assert got.shape == (1, 2, 3, 3) and got.dtype == np.uint8
    assert got[0, :, :, 1].ravel().tolist() == [0, 128, 255, 0, 255, 0]


def test_a_sheet_lays_pictures_out_in_rows():
    images = torch.linspace(0, 1, 5).view(5, 1, 1, 1).expand(5, 3, 20, 30)
    page = sheet(images, 3)
    gap = pictures.GAP
    assert page.size == (gap + 3 * (30 + gap), gap + 2 * (20 + gap))
    for i in range(5):
        x, y = gap + (i % 3) * (30 + gap), gap + (i // 3) * (20 + gap)
        assert pixel(page, x, y) == pixel(page, x + 29, y + 19) == [round(255 * i / 4 + 0.01)] * 3
    assert pixel(page, gap + 2 * (30 + gap), gap + 20 + gap) == [255] * 3
    assert sheet(images[:2], 7).size == (gap + 2 * (30 + gap), gap + 20 + gap)


def test_labels_make_room_and_stay_under_their_picture():
    images = torch.ones(2, 3, 40, 60)
    page = sheet(images, 2, ["a red mug with a handle that goes on and on", "x"])
    plain = sheet(images, 2)
    assert page.height > plain.height and page.width == plain.width
    dark = np.asarray(page.convert("L")) < 200
    assert dark.any() and not dark[: pictures.GAP + 40].any()
    assert not dark[:, pictures.GAP + 60 : 2 * pictures.GAP + 60].any(), "a label runs out of its column"


@pytest.mark.parametrize(
    "text", ["", "a", "a word or two", "W" * 400, "  many   blanks ", "\u65e5\u672c \u0000 \U0001f600"]
)
def test_any_label_fits(text):
    font = pictures.ImageFont.load_default(pictures.TEXT)
    lines = pictures._wrap(text, 80, font)
    assert len(lines) <= 2 and all(font.getlength(line) <= 80 + pictures.TEXT for line in lines)
    sheet(torch.ones(1, 3, 8, 80), 1, [text])


def test_a_sheet_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="at least one picture and one column, got 0 and 3"):
        sheet(torch.ones(0, 3, 4, 4), 3)
    with pytest.raises(ValueError, match="got 2 and 0"):
        sheet(torch.ones(2, 3, 4, 4), 0)
    with pytest.raises(ValueError, match="needs 2 labels, got 1"):
        sheet(torch.ones(2, 3, 4, 4), 1, ["a"])


def test_a_turntable_goes_once_around_in_chunks():
    scene = Compass()
    frames = turntable(scene, frames=16, size=8)
    assert len(frames) == 16 and frames[0].size == (8, 8)
    assert scene.views == [12, 4]
    tilt = np.cos(np.deg2rad(20))
    for i, frame in enumerate(frames):
        a = 2 * np.pi * i / 16
        want = [127.5 + 127.5 * v for v in (tilt * np.sin(a), tilt * np.cos(a), np.sin(np.deg2rad(20)))]
        np.testing.assert_allclose(pixel(frame), want, atol=1)


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".GIF"])
def test_animations_loop_for_ever(tmp_path, suffix):
    path = tmp_path / f"new/turn{suffix}"
    save_turntable(path, turntable(Compass(), frames=6, size=16))
    with Image.open(path) as film:
        assert film.n_frames == 6 and film.info["loop"] == 0
        film.seek(2)
        film.load()
        assert film.info["duration"] == 50
        np.testing.assert_allclose(pixel(film, 8, 8), pixel(turntable(Compass(), 6, 16)[2], 8, 8), atol=12)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_views_stand_side_by_side(tmp_path):
    save_views(tmp_path / "v.png", Compass(), azimuths=(0.0, 90.0, 180.0), size=10)
    with Image.open(tmp_path / "v.png") as image:
        assert image.size == (30, 10)
        for i, frame in enumerate(turntable(Compass(), 4, 10)[:3]):
            np.testing.assert_allclose(pixel(image, 10 * i + 5, 5), pixel(frame, 5, 5), atol=1)


def test_a_sheet_is_written(tmp_path):
    save_sheet(tmp_path / "s.png", torch.rand(3, 3, 8, 9), 2, ["a", "b", "c"])
    with Image.open(tmp_path / "s.png") as image:
        assert image.mode == "RGB"


def test_unknown_extensions_are_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"x\.mp4: av is not installed; pip .*; or use another of \.webp, \.gif"):
        save_turntable(tmp_path / "x.mp4", [Image.new("RGB", (2, 2))])
    with pytest.raises(ValueError, match=r"unknown extension '\.mp4'; use one of \.png"):
        save_sheet(tmp_path / "x.mp4", torch.ones(1, 3, 2, 2), 1)
    with pytest.raises(ValueError, match=r"unknown extension '\.txt'; use one of \.png"):
        save_sheet(tmp_path / "x.txt", torch.ones(1, 3, 2, 2), 1)
    with pytest.raises(ValueError, match="unknown extension ''"):
        save_views(tmp_path / "x", Compass())
    with pytest.raises(ValueError, match="at least one frame"):
        save_turntable(tmp_path / "x.gif", [])
    with pytest.raises(ValueError, match="at least one view and one pixel, got 0 and 256"):
        turntable(Compass(), frames=0)
    assert list(tmp_path.iterdir()) == []


def test_a_scene_without_colours_is_named():
    blind = SimpleNamespace(render=lambda cameras, want, background: Views(cameras))
    with pytest.raises(ValueError, match="a picture needs views with rgb, got only nothing"):
        turntable(blind, frames=1)


def test_a_batch_is_seen_from_all_azimuths_in_any_chunks():
    class Several(Compass):
        def render(self, cameras, want=("rgb", "alpha"), background=(1.0, 1.0, 1.0)):
            rows = cameras.c2w[:, :, :3, 3] * torch.arange(1, 3)[:, None, None]
            return Views(cameras, rgb=rows[..., None, None].expand(*rows.shape, 4, 4))

    whole = look(Several(), 2, (0.0, 90.0, 45.0), size=4)
    assert whole.shape == (2, 3, 3, 4, 4)
    torch.testing.assert_close(whole[1], 2 * whole[0])
    assert torch.equal(look(Several(), 2, (0.0, 90.0, 45.0), size=4, chunk=2), whole)
