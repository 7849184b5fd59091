"""HTML that cannot be broken by what is put into it, and pictures inside the page."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, UInt8
    from PIL import Image
    from torch import Tensor

    Picture = (
        Float[Tensor, "3 _ _"] | UInt8[Tensor, "3 _ _"] | Image.Image | Sequence[Image.Image] | Path
    )  # a Sequence is an animation, a Path a picture file

FORMATS = {"PNG": "image/png", "WEBP": "image/webp", "JPEG": "image/jpeg", "GIF": "image/gif"}
MAX_FILE = 8 << 20  # bytes of a picture file; larger ones do not belong into a page
MAX_PIXELS = 1 << 25
VOID = ("img", "meta", "source")  # elements without an end tag
# Nothing is fetched, whatever the page may contain; the browser sees to it.
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"


class Html(str):
    """Text that is HTML already; all other text is escaped when it becomes part of an element."""


def h(tag: str, *children: str | None, **attributes: str | int | float | None) -> Html:
    """An element.

    Args:
        tag: Its name.
        *children: Elements, and text, which is escaped; None is left out.
        **attributes: Escaped too; None is left out. `class_` is class, and _ becomes - elsewhere.
    """
    pairs = [(name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items() if value is not None]
    start = "".join(f' {name}="{escape(str(value))}"' for name, value in pairs)
    if tag in VOID:
        return Html(f"<{tag}{start}>")
    return Html(f"<{tag}{start}>{join(*children)}</{tag}>")


def join(*children: str | None) -> Html:
    """Elements and texts one after the other."""
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children if child is not None))


def document(title: str, style: str, *body: str | None) -> str:
    """A whole page that loads nothing, readable on a phone and in the dark."""
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", http_equiv="Content-Security-Policy", content=POLICY),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("meta", name="color-scheme", content="light dark"),
        h("title", title),
        h("style", Html(style.replace("</", "<\\/"))),
    )
    return f"<!doctype html>\n{h('html', head, h('body', *body), lang='en')}\n"


def image(picture: Picture, alt: str, fps: float = 20.0) -> Html:
    """An <img> that holds its own pixels; an animation stands still for those who ask for less motion.

    Args:
        picture: Pixels in [0, 1] or 8-bit, a PIL image, frames of an animation, or a file to put in as it is.
        alt: What is to be seen.
        fps: Frames per second of an animation made here.

    Raises:
        FileNotFoundError: If the file is not there.
        ValueError: If it is no picture or too large.
    """
    from PIL import Image

    if isinstance(picture, Path):
        data, kind, size, still = _file(picture)
    elif isinstance(picture, (list, tuple)):
        if not picture:
            raise ValueError(f"an animation needs at least one frame, got none for {alt!r}")
        still = _webp(picture[0]) if len(picture) > 1 else None
        data, kind, size = _webp(*picture, fps=fps), "image/webp", picture[0].size
    else:
        one = picture if isinstance(picture, Image.Image) else _pixels(picture)
        data, kind, size, still = _webp(one), "image/webp", one.size, None
    shown = h("img", src=_uri(data, kind), alt=alt, width=size[0], height=size[1], decoding="async")
    if still is None:
        return shown
    calm = h("source", media="(prefers-reduced-motion: reduce)", srcset=_uri(still, "image/webp"))
    return h("picture", calm, shown)


def film(path: Path, alt: str, poster: Path | None = None) -> Html:
    """A film that plays when it is asked to; an animation that is a picture plays at once, see `image`.

    Args:
        path: An .mp4 file, or a picture file.
        alt: What is to be seen.
        poster: Picture that stands there before the film plays; None: its first frame.

    Raises:
        FileNotFoundError: If the file is not there.
        ValueError: If it is neither, or too large.
    """
    if path.suffix.lower() != ".mp4":
        return image(path, alt)
    data = _read(path)
    if data[4:8] != b"ftyp":
        raise ValueError(f"{path} is no film that can be played; give .mp4")
    still = None if poster is None else _uri(*_file(poster)[:2])
    options = {"controls": "", "loop": "", "muted": "", "playsinline": "", "preload": "auto", "aria_label": alt}
    return h("video", src=_uri(data, "video/mp4"), poster=still, **options)


def _read(path: Path) -> bytes:
    """All of a file that fits a page."""
    if not path.is_file():
        raise FileNotFoundError(f"no picture {path}")
    if path.stat().st_size > MAX_FILE:
        raise ValueError(f"{path} has {path.stat().st_size >> 20} MiB, at most {MAX_FILE >> 20} fit a page; shrink it")
    return path.read_bytes()


def _file(path: Path) -> tuple[bytes, str, tuple[int, int], bytes | None]:
    """Bytes, MIME type and size of a picture file, and the first frame if it moves."""
    from PIL import Image, UnidentifiedImageError

    data = _read(path)
    try:
        with Image.open(io.BytesIO(data), formats=list(FORMATS)) as opened:
            kind, size = FORMATS[opened.format or ""], opened.size
            if size[0] * size[1] > MAX_PIXELS:
                raise ValueError(f"{path} has {size[0]} x {size[1]} pixels, too many for a page; shrink it")
            still = _webp(opened.convert("RGB")) if getattr(opened, "n_frames", 1) > 1 else None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no picture that can be read; give .png, .webp, .jpg or .gif") from error
    return data, kind, size, still


def _pixels(tensor: Tensor) -> Image.Image:
    """A (3, H, W) tensor as an image."""
    from PIL import Image

    from align3d.scenes.pictures import to_uint8

    return Image.fromarray(to_uint8(tensor if tensor.is_floating_point() else tensor / 255))


def _webp(first: Image.Image, *more: Image.Image, fps: float = 20.0) -> bytes:
    """A WebP file: one picture, or an endless animation."""
    file = io.BytesIO()
    options: dict[str, Any] = {"quality": 80, "method": 4} if more else {"quality": 92, "method": 4}
    if more:
        options |= {"save_all": True, "append_images": more, "duration": round(1000 / fps), "loop": 0}
    first.save(file, "WEBP", **options)
    return file.getvalue()


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
