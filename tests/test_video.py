"""Films as files, and in a page."""

import numpy as np
import pytest
from PIL import Image

from align3d.page import film
from align3d.scenes import video
from align3d.scenes.pictures import save_turntable

av = pytest.importorskip("av")
H, W = 31, 46


def frames(number=7):
    """A red square that goes to the right on white."""
    made = []
    for i in range(number):
        pixels = np.full((H, W, 3), 255, np.uint8)
        pixels[8:24, 4 + 3 * i : 20 + 3 * i] = (200, 40, 30)
        made.append(Image.fromarray(pixels))
    return made


def read(path):
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        return stream, [frame.to_ndarray(format="rgb24").astype(int) for frame in file.decode(stream)]


def test_a_film_shows_its_frames(tmp_path):
    save_turntable(tmp_path / "new" / "x.MP4", frames(), fps=12.0)
    stream, shown = read(tmp_path / "new" / "x.MP4")
    assert (stream.codec_context.name, stream.pix_fmt, float(stream.average_rate)) == ("h264", "yuv420p", 12.0)
    assert len(shown) == 7 and shown[0].shape == (H + 1, W, 3), "odd sides are made even"
    for i, frame in enumerate(shown):
        np.testing.assert_allclose(frame[16, 12 + 3 * i], (200, 40, 30), atol=12)
        np.testing.assert_allclose(frame[-1], 255, atol=4)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.MP4"]


def test_the_same_frames_are_the_same_file(tmp_path):
    files = set()
    for i in range(8):
        kept = np.ones(10000 * (i + 1))  # so that the encoder's memory lies elsewhere
        video.write_mp4(tmp_path / "x.mp4", frames(), 12.0)
        files.add((tmp_path / "x.mp4").read_bytes())
        assert kept.all()
    assert len(files) == 1


def test_what_is_no_film_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="at least one frame"):
        save_turntable(tmp_path / "x.mp4", [])
    with pytest.raises(ValueError, match="frames of one size, got 2"):
        video.write_mp4(tmp_path / "x.mp4", [Image.new("RGB", (2, 2)), Image.new("RGB", (2, 4))])
    monkeypatch.setattr(video, "CODEC", "nothing")
    assert video.problem() == "the installed av has no encoder nothing"
    assert list(tmp_path.iterdir()) == []


def test_a_page_holds_a_film(tmp_path):
    video.write_mp4(tmp_path / "x.mp4", frames())
    frames()[-1].save(tmp_path / "last.webp")
    html = film(tmp_path / "x.mp4", 'what "is" seen', tmp_path / "last.webp")
    assert html.startswith('<video src="data:video/mp4;base64,') and "data:image/webp;base64," in html
    assert 'controls=""' in html and "autoplay" not in html and "what &quot;is&quot; seen" in html
    assert film(tmp_path / "last.webp", "x").startswith("<img"), "an animation is a picture"
    (tmp_path / "y.mp4").write_bytes(b"<script>")
    with pytest.raises(ValueError, match=r"y\.mp4 is no film that can be played"):
        film(tmp_path / "y.mp4", "x")
