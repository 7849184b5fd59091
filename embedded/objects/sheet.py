"""Contact sheets of objects, to be looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from . import march
from .sample import Sample, draw, one
from .shards import render
from .table import CATEGORIES


def mixed(count: int, seed: int, held: bool = False) -> list[Sample]:
    """The first objects of a data set."""
    return [draw(seed, i, held) for i in range(count)]


def by_category(seed: int, each: int = 1) -> list[Sample]:
    """`each` single objects of every category, in the table's order."""
    novel = np.array(((45, 20), (215, 40)), np.float32)
    rngs = ((name, np.random.default_rng([seed, i, k])) for i, name in enumerate(CATEGORIES) for k in range(each))
    return [Sample(*one(rng, name), novel) for name, rng in rngs]


def write(
    path: Path, samples: list[Sample], columns: int = 6, views: tuple[int, ...] = (0, 1, 5), zoom: int = 2
) -> None:
    """Write the chosen views of each sample with its first caption below, enlarged without smoothing."""
    from PIL import Image, ImageDraw

    march.library()
    rgb = render(samples, threads=2)["rgb"][:, list(views)]
    n, v, h, w, _ = rgb.shape
    width, height = v * w * zoom, h * zoom + 14
    sheet = Image.new("RGB", (columns * width, -(-n // columns) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for i in range(n):
        x, y = i % columns * width, i // columns * height
        picture = Image.fromarray(np.concatenate(list(rgb[i]), 1))
        sheet.paste(picture.resize((width, h * zoom), Image.Resampling.NEAREST), (x, y))
        pen.text((x + 3, y + h * zoom), samples[i].captions[0], fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
