"""Models to records: a survey of what is usable, the variants of each object, shards on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from objects.palette import jitter
from objects.table import CATEGORIES, held_out
from safetensors.numpy import save

from furniture import colours, mesh, render, words
from furniture.catalog import Archive, Entry, entries
from furniture.wavefront import Mesh, load

FRONT, JITTER = 30.0, 8.0  # canonical yaw: a three-quarter view from azimuth 0, degrees
MIN_COVER = 0.03  # of the pictures: thinner objects are left out
GOOD_COVER = 0.06
DUPLICATE = 1.5  # mean difference of two objects' pictures, 0..255, below which the second is left out
HELD = 20  # one object in so many is held out

Say = Callable[[str], None]


@dataclass(frozen=True)
class Usable:
    """One object that goes into the set, and what the survey found."""

    entry: Entry
    materials: tuple[int, ...]  # to tint
    share: float  # of what is seen, of those materials
    material: str  # "wooden", or nothing
    good: bool

    @property
    def split(self) -> str:
        """Either "held", for one object in HELD, or "train"."""
        return "held" if number(self.entry.id, "split") % HELD == 0 else "train"


@dataclass(frozen=True)
class Variant:
    """How one record shows its object."""

    canonical: bool
    yaw: float  # degrees
    scale: tuple[float, float, float]
    mirror: bool
    tint: str  # colour word, or nothing
    rgb: tuple[float, ...]
    novel: tuple[tuple[float, float], ...]  # azimuth, elevation of the novel views, degrees


def number(*key: object) -> int:
    """A large number that depends on the key alone."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def is_plain(views: render.Views, colour: np.ndarray) -> bool:
    """Whether an object is a nearly uniform box: full outlines, few directions, one colour."""
    fill, few = [], []
    for mask, normal in zip(views.mask > 0, views.normal, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        fill.append(mask.sum() / ((np.ptp(rows) + 1) * (np.ptp(columns) + 1)) if len(rows) else 1)
        _, counts = np.unique(normal[mask] // 16, axis=0, return_counts=True)
        few.append(np.sort(counts)[-3:].sum() / max(1, counts.sum()))
    return min(fill) > 0.7 and min(few) > 0.8 and colour.std(0).max() < 0.07


def held_pair(what: str, color: str) -> bool:
    """Whether the procedural set keeps this (object, colour) pair for tests: prompts that no training object shows."""
    names = {what, words.noun(what)}
    return any(names & {key, *kind.nouns} and held_out(key, color) for key, kind in CATEGORIES.items())


def look(entry: Entry, archive: Archive) -> tuple[Mesh, render.Views]:
    """The prepared model in its canonical pose, and its views without occlusion."""
    model = mesh.prepare(load(archive, entry), entry)
    return model, render.render(mesh.transform(model, FRONT), np.zeros((0, 2)), directions=0)


def survey(archives: dict[str, Archive], say: Say) -> tuple[list[Usable], list[tuple[Entry, str]]]:
    """Load and look at every model.

    Returns:
        The usable objects, and the others with the reason why they are left out.
    """
    usable, dropped, seen = [], [], []
    found = [(archive, entry) for archive in archives.values() for entry in entries(archive)]
    for done, (archive, entry) in enumerate(found):
        if done % 100 == 0:
            say(f"survey: {done} of {len(found)} models")
        reason = words.drop_reason(entry)
        if not reason:
            try:
                model, views = look(entry, archive)
            except ValueError as error:
                reason = str(error)
        if not reason:
            small = views.rgb.reshape(4, 16, 4, 16, 4, 3).mean((2, 4))
            cover = float((views.mask > 0).mean())
            if cover < MIN_COVER:
                reason = "too thin"
            elif any(np.abs(small - other).mean() < DUPLICATE * cover for other in seen):
                reason = "duplicate"
        if reason:
            dropped.append((entry, reason))
            continue
        seen.append(small)
        usable.append(describe(entry, model, views, cover))
    return usable, dropped


def describe(entry: Entry, model: Mesh, views: render.Views, cover: float) -> Usable:
    """What the survey keeps of one model."""
    materials, share = mesh.main_materials(model, views.ids)
    what = words.phrase(entry)
    colour = model.albedo()[model.material[views.ids[views.ids >= 0]]]
    weak = words.category(what) in words.WEAK_CLASSES
    good = not weak and cover >= GOOD_COVER and not is_plain(views, colour)
    named = words.material_word([model.names[k] for k in materials]) if share > 0.5 else ""
    return Usable(entry, tuple(materials), share, named, good)


def variants(item: Usable, canonical: int, yaws: int, seed: int) -> list[Variant]:
    """The records of one object: the first as it is, then other colours and sizes, then turned at random.

    Objects that keep their colour get at most two canonical records: more would only repeat them.
    """
    key = (seed, item.entry.id)
    what = words.phrase(item.entry)
    paints = np.random.default_rng(number(*key, "paints")).permutation(colours.WORDS)
    paints = [str(paint) for paint in paints if not held_pair(what, paint)]
    tints = words.tintable(what) and item.share > 0.25
    count = canonical if tints else min(canonical, 2)
    out = []
    for k in range(count + yaws):
        rng = np.random.default_rng(number(*key, k))
        draw = rng.random(16)
        is_canonical = k < count
        tint = paints[k % len(paints)] if tints and k not in (0, count) else ""
        out.append(
            Variant(
                canonical=is_canonical,
                yaw=round(float(FRONT + JITTER * (2 * draw[0] - 1) if is_canonical else 360 * draw[0]), 2),
                scale=(1.0, 1.0, 1.0) if k == 0 else tuple(np.round(0.88 + 0.24 * draw[1:4], 3).tolist()),
                mirror=bool(not is_canonical and draw[4] < 0.5),
                tint=tint,
                rgb=tuple(np.round(jitter(rng, tint), 4).tolist()) if tint else (),
                novel=tuple((round(360 * a, 2), round(55 * e - 5, 2)) for a, e in draw[5:9].reshape(2, 2).tolist()),
            )
        )
    return out


def record(item: Usable, model: Mesh, variant: Variant) -> tuple[dict[str, np.ndarray], list[str], dict]:
    """Tensors, captions and meta of one record.

    A record in the canonical pose whose (object, colour) pair the procedural set keeps for tests is marked as not
    canonical, so that the generator does not train on it.
    """
    shown = mesh.tint(model, list(item.materials), np.array(variant.rgb)) if variant.tint else model
    shown = mesh.transform(shown, variant.yaw, variant.scale, variant.mirror)
    views = render.render(shown, np.array(variant.novel))
    first = len(render.AZIMUTHS)
    to_world = np.stack([render.camera_to_world(a, render.ELEVATION)[:, :3] for a in render.AZIMUTHS])
    seen = colours.shares(views.rgb[:first], views.normal, views.mask[:first], to_world)
    if variant.tint and item.share > 0.45:  # the paint's own name, not a guess
        rest = [(c, s) for c, s in seen if c != variant.tint and s < item.share * 0.6]
        seen = [(variant.tint, max(item.share, *(s for _, s in rest), 0.0)), *rest]
    elif item.material == "wooden":
        seen = [("brown" if c == "orange" else c, s) for c, s in seen]
    captions = words.captions(item.entry, seen, "" if variant.tint else item.material)
    what = words.phrase(item.entry)
    main = seen[0][0] if seen else ""
    tensors = {
        "rgb": views.rgb,
        "mask": views.mask,
        "depth": views.depth,
        "normal": views.normal,
        "novel": np.array(variant.novel, np.float32),
    }
    meta = {
        "noun": words.noun(what),
        "color": main,
        "category": words.category(what),
        "object": item.entry.id,
        "licence": item.entry.licence,
        "creator": item.entry.creator,
        "good": item.good,
        "canonical": variant.canonical and not held_pair(what, main),
        "split": item.split,
    }
    return tensors, captions, meta


@dataclass(frozen=True)
class Shard:
    """One pair of files to be, and the records in it."""

    name: str
    rows: list[tuple[Usable, Variant]]


def plan(usable: list[Usable], canonical: int, yaws: int, seed: int, size: int) -> list[Shard]:
    """All shards: objects in an order that mixes the classes, held-out objects apart."""
    order = sorted(usable, key=lambda item: number(seed, item.entry.id, "order"))
    shards = []
    for split, prefix in (("train", "shard"), ("held", "held")):
        rows = [(i, v) for i in order if i.split == split for v in variants(i, canonical, yaws, seed)]
        for k in range(0, len(rows), size):
            shards.append(Shard(f"{prefix}-{k // size:05d}", rows[k : k + size]))
    return shards


def records(shard: Shard, archives: dict[str, Archive]) -> Iterator[tuple[dict[str, np.ndarray], list[str], dict]]:
    """The records of a shard; each model is loaded once."""
    current, model = None, None
    for item, variant in shard.rows:
        if item.entry.id != current:
            current, model = item.entry.id, mesh.prepare(load(archives[item.entry.archive], item.entry), item.entry)
        yield record(item, model, variant)


def write(path: Path, data: bytes) -> None:
    """Put a file in place at once: complete, or not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def as_json(value: object) -> bytes:
    """UTF-8 JSON of plain values and dataclasses."""
    return json.dumps(value, ensure_ascii=False, default=dataclasses.asdict).encode()


def build(
    out: Path, archives: dict[str, Archive], canonical: int, yaws: int, seed: int, size: int, say: Say
) -> list[Entry]:
    """Write every shard that is not there yet; the JSON file of a pair comes last and marks it complete.

    Returns:
        The models that were used, in catalogue order.

    Raises:
        ValueError: If OUT holds shards made with other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    settings = {"variants": canonical, "yaws": yaws, "seed": seed, "size": size, "archives": sorted(archives)}
    mark = out / "settings.json"
    if mark.exists() and json.loads(mark.read_bytes()) != settings:
        raise ValueError(f"{out} holds shards made with {mark.read_text()}; give another folder or the same settings")
    write(mark, as_json(settings))
    usable, dropped = survey(archives, say)
    write(out / "dropped.json", as_json([{"object": e.id, "name": e.name, "reason": r} for e, r in dropped]))
    shards = plan(usable, canonical, yaws, seed, size)
    total, done, start = sum(len(s.rows) for s in shards), 0, time.monotonic()
    say(f"{len(usable)} objects, {len(dropped)} left out, {total} records in {len(shards)} shards")
    for shard in shards:
        tensors_path, json_path = out / f"{shard.name}.safetensors", out / f"{shard.name}.json"
        if tensors_path.exists() and json_path.exists():
            total -= len(shard.rows)
            continue
        rows = list(records(shard, archives))
        stacked = {name: np.stack([tensors[name] for tensors, _, _ in rows]) for name in rows[0][0]}
        write(tensors_path, save(stacked))
        write(json_path, as_json({"captions": [c for _, c, _ in rows], "meta": [m for _, _, m in rows]}))
        done += len(rows)
        speed = done / (time.monotonic() - start)
        say(f"{shard.name}: {done} of {total} records, {speed:.1f} a second, {(total - done) / speed:.0f} s left")
    return [item.entry for item in usable]
