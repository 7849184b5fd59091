"""Training views with captions from the 3D models of Debian's sweethome3d-furniture.

    python embedded/make_furniture.py OUT --source /usr/share/sweethome3d/furniture --variants 4 --yaws 3 --seed 0
    python embedded/make_furniture.py OUT --sheet sheet.png      # look at what is there

Shards that exist are kept, so an interrupted run goes on. Needs g++, numpy, pillow and safetensors.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from furniture import attribution, catalog, dataset
from PIL import Image, ImageDraw, ImageFont
from safetensors import safe_open


def sheet(out: Path, target: Path, count: int, seed: int, pattern: str) -> None:
    """A picture of random records: six views, depth, normals, the plainest caption."""
    found = []
    for path in sorted(out.glob("*.json")):
        if path.with_suffix(".safetensors").exists():
            text = json.loads(path.read_bytes())
            rows = zip(text["captions"], text["meta"], strict=True)
            found += [(path.with_suffix(".safetensors"), k, c, m) for k, (c, m) in enumerate(rows)]
    found = [f for f in found if pattern in f"{f[2]} {f[3]}"]
    if not found:
        raise ValueError(f"no records in {out} match {pattern!r}")
    picks = np.random.default_rng(seed).permutation(len(found))[:count]
    font, columns = ImageFont.load_default(size=10), 3
    width, height = 8 * 64 + 6, 64 + 12
    page = Image.new("RGB", (columns * width, -(-len(picks) // columns) * height), "white")
    draw = ImageDraw.Draw(page)
    for place, k in enumerate(picks):
        path, row, captions, meta = found[k]
        with safe_open(path, "np") as file:
            rgb, depth, normal = (file.get_slice(name)[row] for name in ("rgb", "depth", "normal"))
        depth = np.where(depth[0] == 0, 0, np.clip(255 * (0.5 - depth[0].astype(np.float32)), 30, 255)).astype(np.uint8)
        tiles = [*rgb, np.repeat(depth[..., None], 3, 2), (normal[0].astype(np.int16) + 128).astype(np.uint8)]
        x, y = place % columns * width, place // columns * height
        page.paste(Image.fromarray(np.concatenate(tiles, 1)), (x, y))
        flags = f"{'' if meta['canonical'] else ' (turned)'}{'' if meta['good'] else ' (weak)'}"
        draw.text((x + 2, y + 63), f"{captions[0]} | {captions[2]}{flags}", fill="black", font=font)
    page.save(target)


def main() -> None:
    """Read the command line and build, or draw a sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the shards")
    parser.add_argument("--source", type=Path, default=Path("/usr/share/sweethome3d/furniture"), help="the .sh3f files")
    parser.add_argument("--variants", type=int, default=4, help="canonical records an object, the first untinted")
    parser.add_argument("--yaws", type=int, default=3, help="further records an object, turned at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=500, help="records a shard")
    parser.add_argument("--attribution", type=Path, help="write the credits of the models used to this file")
    parser.add_argument("--sheet", type=Path, help="draw records of OUT to this picture instead of building")
    parser.add_argument("--match", default="", help="sheet: only records whose captions or meta contain this")
    parser.add_argument("--count", type=int, default=60, help="sheet: records")
    options = parser.parse_args()
    try:
        if min(options.variants, options.size) < 1 or options.yaws < 0:
            raise ValueError("--variants and --size must be at least 1, --yaws at least 0")
        if options.sheet:
            sheet(options.out, options.sheet, options.count, options.seed, options.match)
            return
        archives = catalog.open_all(options.source)
        used = dataset.build(
            options.out,
            archives,
            options.variants,
            options.yaws,
            options.seed,
            options.size,
            lambda s: print(s, flush=True),
        )
        text = attribution.attribution(used)
        dataset.write(options.out / "ATTRIBUTION.md", text.encode())
        if options.attribution:
            dataset.write(options.attribution, text.encode())
    except (ValueError, FileNotFoundError) as error:
        print(f"make_furniture: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
