"""Pictures as tensors: bits, transparency, orientation, frames, and files that mean harm."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from align3d.scenes import picture_files
from align3d.scenes.picture_files import read_picture

H, W = 5, 7
NOISE = np.random.default_rng(0).integers(0, 256, (H, W, 4), dtype=np.uint8)
GRAY = np.arange(H * W, dtype=np.uint16).reshape(H, W) * 1800


def plain() -> Image.Image:
    return Image.fromarray(NOISE[..., :3])


def seen(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 255).movedim(-1, 0)


def test_pixels_are_those_of_the_file(tmp_path):
    plain().save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert picture.shape == (3, H, W) and picture.dtype == torch.float32
    assert torch.equal(picture, seen(NOISE[..., :3]))
    plain().save(tmp_path / "a.WEBP", lossless=True)
    assert torch.equal(read_picture(tmp_path / "a.WEBP"), picture)
    Image.new("RGB", (W, H), (200, 30, 90)).save(tmp_path / "a.jpeg", quality=95)
    flat = torch.tensor([200, 30, 90])[:, None, None] / 255
    assert (read_picture(tmp_path / "a.jpeg") - flat).abs().max() < 0.02


@pytest.mark.parametrize(("background", "value"), [(None, 1.0), ((0.0, 0.5, 1.0), None)])
def test_what_is_transparent_shows_the_background(tmp_path, background, value):
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png", *([background] if background else []))
    alpha = torch.from_numpy(NOISE[..., 3] / 255).float()
    behind = torch.tensor(background or (1.0, 1.0, 1.0))[:, None, None]
    assert torch.allclose(picture, seen(NOISE[..., :3]) * alpha + behind * (1 - alpha), atol=1e-6)


def test_palettes_with_a_transparent_colour(tmp_path):
    palette = Image.new("P", (W, H), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "a.png", transparency=0)
    picture = read_picture(tmp_path / "a.png")
    assert picture[:, 0, 0].tolist() == [1, 1, 1] and picture[:, 1, 1].tolist() == [0, 0, 1]


def test_gray_keeps_16_bit(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    wanted = torch.from_numpy(GRAY.astype(np.float32) / 65535)
    assert torch.allclose(picture, wanted.expand(3, H, W), atol=1e-6) and picture.max() > 0.9
    Image.fromarray(NOISE[..., 0]).save(tmp_path / "b.png")
    assert torch.equal(read_picture(tmp_path / "b.png")[1], seen(NOISE)[0])
    plain().convert("1").save(tmp_path / "c.png")
    assert set(read_picture(tmp_path / "c.png").unique().tolist()) == {0.0, 1.0}


def test_cameras_turn_their_pictures(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    plain().save(tmp_path / "a.png", exif=exif)
    turned = seen(np.rot90(NOISE[..., :3], -1).copy())
    assert torch.equal(read_picture(tmp_path / "a.png"), turned) and turned.shape == (3, W, H)


@pytest.mark.parametrize("suffix", [".webp", ".png"])
def test_of_animations_the_first_frame_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (W, H), (x, 0, 0)) for x in (250, 90, 10)]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], duration=40, lossless=True)
    assert read_picture(tmp_path / f"a{suffix}")[0, 2, 3].item() == pytest.approx(250 / 255)


def bomb(width: int, height: int) -> bytes:
    """A small PNG file that promises much."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(9000, 10), (8000, 8000), (60000, 60000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_not_unpacked(tmp_path, recwarn, size):
    (tmp_path / "a.png").write_bytes(bomb(*size))
    with pytest.raises(ValueError, match=r"a\.png (has|is no sound)"):
        read_picture(tmp_path / "a.png")
    assert not recwarn.list


def damaged() -> dict[str, bytes]:
    import io

    files = {}
    for kind in ("PNG", "JPEG", "WEBP", "GIF"):
        buffer = io.BytesIO()
        Image.fromarray(np.tile(NOISE[..., :3], (9, 9, 1))).save(buffer, kind)
        files[kind] = buffer.getvalue()
    whole = files["PNG"]
    return {
        "cut png": whole[: len(whole) // 2],
        "cut jpeg": files["JPEG"][: len(files["JPEG"]) // 2],
        "cut webp": files["WEBP"][: len(files["WEBP"]) // 2],
        "a byte changed": whole[:200] + bytes([whole[200] ^ 255]) + whole[201:],
        "another format": files["GIF"],
        "empty": b"",
        "text": b"a red chair\n",
        "head alone": whole[:33],
        "promises more than it has": bomb(5000, 5000),
    }


@pytest.mark.parametrize("case", damaged())
def test_damaged_files_are_named_in_a_line(tmp_path, case):
    (tmp_path / "a.png").write_bytes(damaged()[case])
    with pytest.raises(ValueError, match=r"a\.png is no sound picture \(.+\); give a whole \.png") as error:
        read_picture(tmp_path / "a.png")
    assert "\n" not in str(error.value)


def test_other_refusals(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no picture"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(FileNotFoundError, match="no picture"):
        read_picture(tmp_path)
    plain().save(tmp_path / "a.png")
    monkeypatch.setattr(picture_files, "MAX_BYTES", 20)
    with pytest.raises(ValueError, match="bytes, more than a picture may have"):
        read_picture(tmp_path / "a.png")
