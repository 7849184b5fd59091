"""The files of a data set of objects.

OUT/shard-00000.safetensors holds up to 500 objects:

| tensor | type, shape | meaning |
|---|---|---|
| rgb | uint8 (n, 6, 64, 64, 3) | views 0..3 canonical, 4 and 5 free; white background |
| mask | uint8 (n, 6, 64, 64) | canonical: 255 where the pixel's ray hits; free: coverage 0..255 |
| depth | float16 (n, 4, 64, 64) | canonical: camera z minus 1.4; 0 where mask is 0 |
| normal | int8 (n, 4, 64, 64, 3) | canonical: unit normal x 127, camera frame (OpenCV axes), z < 0; 0 where mask is 0 |
| novel | float32 (n, 2, 2) | azimuth and elevation of the free views, degrees |

Cameras: radius 1.4, focal length 1422.222 / 1024 of the width, looking at the origin; canonical azimuth 0, 90, 180, 270
(0 on +Z, 90 on +X) at elevation 20. Canonical pixel x sees u = x / (W - 1), end points included; free views see
u = (x + 1/2) / W and are antialiased over white.

OUT/shard-00000.json has "captions", three for each object, and "meta", one dictionary for each. OUT/source.json says
which seed, and whether held-out pairs, the folder is of.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np

from . import march
from .sample import Sample, draw

SHARD = 500
SIZE = 64


def render(samples: list[Sample], threads: int = 1) -> dict[str, np.ndarray]:
    """The tensors of a shard, as in the table above."""
    canonical = [march.camera(a, march.ELEVATION) for a in march.AZIMUTHS]
    cameras = np.stack([[*canonical, *(march.camera(a, e) for a, e in s.novel)] for s in samples])
    rgb, mask, depth, normal = march.march([(s.prims, s.frame) for s in samples], cameras, 4, SIZE, threads)
    depth = np.where(mask[:, :4] > 0, depth - march.RADIUS, 0).astype(np.float16)
    return {"rgb": rgb, "mask": mask, "depth": depth, "normal": normal, "novel": np.stack([s.novel for s in samples])}


def write(out: Path, count: int, seed: int, threads: int, held: bool = False) -> None:
    """Write objects 0 .. count - 1 of a data set, shard by shard, and report progress.

    Args:
        out: Folder; made if missing.
        count: Objects in all.
        seed: Of the data set.
        threads: Of the tracer; they do not change the result.
        held: Held-out pairs only.

    Raises:
        ValueError: If the folder holds another data set.
    """
    from safetensors.numpy import save

    out.mkdir(parents=True, exist_ok=True)
    source, own = out / "source.json", {"seed": seed, "held": held}
    if source.exists() and (there := json.loads(source.read_text())) != own:
        raise ValueError(f"{out} holds objects of {there}, not of {own}; give another folder or the same options")
    _atomic(source, json.dumps(own).encode())
    shards = -(-count // SHARD)
    start, made = time.monotonic(), 0
    for k in range(shards):
        tensors, words = out / f"shard-{k:05d}.safetensors", out / f"shard-{k:05d}.json"
        rows = range(k * SHARD, min((k + 1) * SHARD, count))
        if tensors.exists() and words.exists() and len(json.loads(words.read_text())["captions"]) >= len(rows):
            continue
        samples = [draw(seed, i, held) for i in rows]
        info = {"captions": [s.captions for s in samples], "meta": [s.meta for s in samples]}
        _atomic(words, json.dumps(info).encode())
        _atomic(tensors, save(render(samples, threads)))
        made += len(samples)
        rate = made / (time.monotonic() - start)
        left = (count - (k + 1) * SHARD) / rate / 60
        print(f"shard {k + 1}/{shards}  {rate:.0f} objects/s  {max(left, 0):.1f} min left", flush=True)


def _atomic(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
