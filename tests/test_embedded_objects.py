"""The procedural training objects: geometry against closed forms, determinism, captions, held-out rule, files."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "embedded"))

import make_objects
import make_prompts
from objects import build, captions, march, sample, shards, table
from objects.palette import COLORS

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")

ONE = np.ones(3)
VIEWS = np.stack([*(march.camera(a, 20) for a in march.AZIMUTHS), march.camera(33, 45), march.camera(200, -5)])


def placed(draw, stretch=(1.0, 1.0, 1.0), yaw=0.0):
    builder = build.Builder(np.random.default_rng(0), ONE * 0.5, ONE * 0.5)
    draw(builder)
    return builder.place(yaw, 1.0, stretch)


def rays(camera, size=64):
    u, v = np.meshgrid(np.arange(size) / (size - 1) - 0.5, np.arange(size) / (size - 1) - 0.5)
    return np.stack([u / march.FOCAL, v / march.FOCAL, np.ones_like(u)], -1) @ camera[:, :3].T  # camera z is 1


def points(depth, camera):
    return rays(camera) * depth[..., None] + camera[:, 3]


@pytest.fixture(scope="module")
def drawn():
    return [sample.draw(7, i) for i in range(400)]


def test_sphere_has_the_depth_normals_and_coverage_of_the_closed_form():
    objects = [placed(lambda b: b.ball((0.3, -1, 2), 0.7, b.main))]
    rgb, mask, depth, normal = march.march(objects, VIEWS[None], 4)
    for v in range(4):
        d, o = rays(VIEWS[v]), VIEWS[v][:, 3]
        a, b, c = (d * d).sum(-1), (d * o).sum(-1), (o * o).sum() - build.RADIUS**2
        root = b * b - a * c
        edge = np.abs(root) < 0.01
        hit = mask[0, v] == 255
        assert (hit == (root > 0))[~edge].all()
        inside = hit & ~edge
        z = (-b - np.sqrt(np.maximum(root, 0))) / a
        assert np.abs(depth[0, v] - z)[inside].max() < 4e-3  # the eps of the march, at a grazing angle
        assert np.abs(depth[0, v] - z)[inside].mean() < 5e-4
        n = points(depth[0, v], VIEWS[v]) / build.RADIUS @ VIEWS[v][:, :3]
        measured = normal[0, v].astype(float)[inside]
        assert np.abs(np.linalg.norm(measured, axis=-1) - 127).max() < 1
        assert ((measured * n[inside]).sum(-1) / 127).min() > 0.99
        assert (normal[0, v][hit][:, 2] < 0).all()
        assert not depth[0, v][~hit].any() and not normal[0, v][~hit].any() and (rgb[0, v][~hit] == 255).all()
    tangent = build.RADIUS / np.sqrt(march.RADIUS**2 - build.RADIUS**2) * march.FOCAL * 64
    for v in (4, 5):  # free views: antialiased coverage of a disc
        assert abs(mask[0, v].sum() / 255 / (np.pi * tangent**2) - 1) < 0.01
        assert 0 < ((mask[0, v] > 0) & (mask[0, v] < 255)).mean() < 0.1


def test_box_is_turned_towards_x_and_stretched_along_its_own_axes():
    prims = placed(lambda b: b.box((0, 0, 0), (1, 0.2, 0.5), b.main, r=0), (1, 3, 1), yaw=30)
    _, mask, depth, _ = march.march([prims], VIEWS[None], 4)
    seen = np.concatenate([points(depth[0, v], VIEWS[v])[mask[0, v] > 0] for v in range(4)])
    own = seen @ build.turn(ry=30)  # back into the box's axes
    half = np.array((1, 0.6, 0.5)) * build.RADIUS / np.sqrt(1 + 0.36 + 0.25)
    assert np.allclose(np.abs(own).max(0), half, atol=0.012)


@pytest.mark.parametrize(
    "draw",
    [
        lambda b: b.box((0, 0, 0), (1, 0.6, 0.5), b.main, r=0.2),
        lambda b: b.cone((0, 0, 0), 1, 0.8, 0.3, b.main),
        lambda b: b.torus((0, 0, 0), 0.8, 0.25, b.main, rot=(90, 0, 0)),
        lambda b: b.limb((-1, 0, 0), (1, 0.5, 0), 0.3, b.main, tip=0.1),
        lambda b: b.dome((0, 0, 0), (1, 0.7, 0.8), b.main),
        lambda b: b.prism((0, 0, 0), (1, 0.7, 0.8), b.main),
        lambda b: b.pyramid((0, 0, 0), (1, 0.7, 0.8), b.main),
        lambda b: b.shell((0, 0, 0), (1, 0.7, 0.8), 0.06, b.main),
        lambda b: b.star((0, 0, 0), 1, 0.2, b.main, points=6),
        lambda b: b.arc((0, 0, 0), 1, 0.2, 100, b.main),
        lambda b: b.heart((0, 0, 0), 1, 0.2, b.main),
        lambda b: b.disc((0, 0, 0), (1, 0.3, 0.6), b.main),
    ],
)
def test_every_primitive_fills_its_box_and_no_more(draw):
    builder = build.Builder(np.random.default_rng(0), ONE * 0.5, ONE * 0.5)
    draw(builder)
    low, high = builder.bounds()
    prims, frame = builder.place(0.0, 1.0)
    cameras = np.stack([march.camera(a, e) for a in range(0, 360, 45) for e in (-50, 20, 50)])
    _, mask, depth, _ = march.march([(prims, frame)], cameras[None], len(cameras))
    world = np.concatenate([points(d, c)[m > 0] for d, c, m in zip(depth[0], cameras, mask[0], strict=True)])
    own = world @ frame[:9].reshape(3, 3).T + frame[9:]
    slack = 0.06 * (high - low).max()
    assert (own.min(0) > low - slack).all() and (own.max(0) < high + slack).all()
    assert (own.min(0) < low + slack).all() and (own.max(0) > high - slack).all()


def test_cut_takes_away_and_shows_its_own_colour():
    def draw(b):
        b.box((0, 0, 0), (1, 1, 1), np.array((1.0, 0, 0)), r=0)
        b.box((0, 0, 1), (0.5, 0.5, 0.5), np.array((0, 1.0, 0)), r=0, cut=True)

    rgb, _, depth, _ = march.march([placed(draw)], march.camera(0, 0)[None, None], 1)
    assert rgb[0, 0, 32, 32].argmax() == 1 and rgb[0, 0, 32, 20].argmax() == 0
    assert depth[0, 0, 32, 32] - depth[0, 0, 32, 20] == pytest.approx(0.5 * build.RADIUS / 3**0.5, rel=0.05)


@pytest.mark.parametrize("name", table.CATEGORIES)
def test_category_is_seen_whole_in_every_view(name):
    rng = np.random.default_rng(1)
    objects = [sample.one(rng, name)[:2] for _ in range(3)]
    _, mask, depth, _ = march.march(objects, np.repeat(VIEWS[None], 3, 0), 4)
    assert (mask > 0).mean((2, 3)).min() > 0.015
    assert not mask[..., [0, -1], :].any() and not mask[..., [0, -1]].any()
    for i in range(3):
        for v in range(4):
            seen = points(depth[i, v], VIEWS[v])[mask[i, v] > 0]
            assert np.sqrt((seen**2).sum(-1)).max() < 0.4505


def test_samples_are_functions_of_seed_and_index(drawn):
    again = sample.draw(7, 123)
    assert again.captions == drawn[123].captions and again.meta == drawn[123].meta
    assert (again.prims == drawn[123].prims).all() and (again.novel == drawn[123].novel).all()
    assert sample.draw(8, 123).captions != again.captions or sample.draw(8, 123).prims.shape != again.prims.shape


def test_two_draws_of_a_prompt_differ():
    rng = np.random.default_rng(0)
    for name in table.CATEGORIES:
        first, second = (sample.one(rng, name, color="pink", part_color="blue") for _ in range(2))
        assert first[0].shape != second[0].shape or np.abs(first[0] - second[0]).max() > 0.01


def test_captions_name_what_is_there(drawn):
    kinds = set()
    for s in drawn:
        kinds.add(s.meta["kind"])
        plain, second, loose = s.captions
        for text in (plain, second, loose):
            assert re.fullmatch(r"[a-z0-9',\- ]+", text) and "  " not in text
            assert not re.search(r"\ba [aeiou]|\ban [^aeiouh]", text), text
        assert re.search(rf"\b{s.meta['color']}\b", plain)
        noun = s.meta["noun"]
        assert (captions.plural(noun) if s.meta["kind"] == "count" else noun) in plain
        if s.meta["part"]:
            assert f"{s.meta['part_color']} {s.meta['part']}" in plain
        if s.meta["pattern"]:
            assert f"{s.meta['part_color']} {'stripes' if s.meta['pattern'] == 'striped' else 'dots'}" in plain
        if s.meta["size"]:
            assert s.meta["size"] in plain
    assert kinds == {"single", "count", "on", "beside", "in"}


def test_training_objects_keep_to_the_held_out_rule(drawn):
    for s in drawn:
        assert not table.held_out(s.meta["category"], s.meta["color"]) and s.meta["split"] == "train"
        if s.meta.get("other") in table.CATEGORIES:
            assert not table.held_out(s.meta["other"], s.meta["other_color"])
    held = [sample.draw(7, i, held=True).meta for i in range(50)]
    assert all(table.held_out(m["category"], m["color"]) and m["split"] == "held" for m in held)


def test_one_pair_in_eight_is_held_out_and_no_natural_one():
    pairs = [(name, color) for name in table.CATEGORIES for color in COLORS]
    assert sum(table.held_out(*p) for p in pairs) / len(pairs) == pytest.approx(1 / 8, abs=0.01)
    for name, kind in table.CATEGORIES.items():
        assert not any(table.held_out(name, color) for color in kind.natural)
        assert table.colors_of(name, held=True) and table.category_of(kind.nouns[-1]) == name
    assert len(table.CATEGORIES) >= 36


def test_second_colour_and_patterns_are_visible():
    rng = np.random.default_rng(3)
    for name, kind in table.CATEGORIES.items():
        for pattern in ("", *kind.patterns):
            main, other = ("gray", "pink") if not pattern else ("cyan", "yellow")
            builder = sample.build(rng, name, main, None if pattern else other, pattern, other if pattern else None)
            rgb, mask, _, _ = march.march([builder.place(kind.yaw, 1.0)], VIEWS[None, :4], 4)
            colour = rgb[0][mask[0] > 0].astype(int)
            r, g, b = colour.T
            hit = (r > g + 60) & (b > g + 25) if not pattern else (r > b + 60) & (g > b + 60)
            assert hit.mean() > 0.01, (name, pattern)


def test_shards_have_the_fixed_format_and_resume(tmp_path, monkeypatch):
    from safetensors.numpy import load_file

    monkeypatch.setattr(shards, "SHARD", 4)
    assert make_objects.main([str(tmp_path), "--count", "6", "--seed", "5", "--threads", "2"]) == 0
    first, second = (load_file(tmp_path / f"shard-0000{k}.safetensors") for k in range(2))
    n = 4
    expected = {
        "rgb": (np.uint8, (n, 6, 64, 64, 3)),
        "mask": (np.uint8, (n, 6, 64, 64)),
        "depth": (np.float16, (n, 4, 64, 64)),
        "normal": (np.int8, (n, 4, 64, 64, 3)),
        "novel": (np.float32, (n, 2, 2)),
    }
    assert {k: (v.dtype.type, v.shape) for k, v in first.items()} == expected
    assert second["rgb"].shape[0] == 2
    assert set(np.unique(first["mask"][:, :4])) == {0, 255} and np.abs(first["depth"]).max() < 0.46
    novel = first["novel"]
    assert (novel[..., 0] >= 0).all() and (novel[..., 0] <= 360).all() and (np.abs(novel[..., 1] - 22.5) <= 27.5).all()
    text = json.loads((tmp_path / "shard-00000.json").read_text())
    assert len(text["captions"]) == n and all(len(c) == 3 for c in text["captions"])
    assert {"noun", "color", "part", "part_color", "category", "split"} <= set(text["meta"][0])

    kept = (tmp_path / "shard-00001.safetensors").stat().st_mtime_ns
    before = (tmp_path / "shard-00000.safetensors").read_bytes()
    (tmp_path / "shard-00000.safetensors").unlink()  # as if stopped; one thread this time: the same bits
    assert make_objects.main([str(tmp_path), "--count", "6", "--seed", "5", "--threads", "1"]) == 0
    assert (tmp_path / "shard-00000.safetensors").read_bytes() == before
    assert (tmp_path / "shard-00001.safetensors").stat().st_mtime_ns == kept
    assert not list(tmp_path.glob(".*"))

    assert make_objects.main([str(tmp_path), "--count", "7", "--seed", "5"]) == 0  # a part of a shard is made whole
    assert load_file(tmp_path / "shard-00001.safetensors")["rgb"].shape[0] == 3
    assert make_objects.main([str(tmp_path), "--count", "7", "--seed", "6"]) == 2


def test_bad_arguments_exit_with_2(tmp_path, capsys):
    assert make_objects.main([str(tmp_path), "--count", "0"]) == 2
    (tmp_path / "file").write_text("")
    assert make_objects.main([str(tmp_path / "file" / "x"), "--count", "1"]) == 2
    assert capsys.readouterr().err.count("error:") == 2


def test_shipped_prompts_are_the_generated_ones():
    for name, lines in (("train.txt", make_prompts.train()), ("heldout.txt", make_prompts.heldout())):
        assert (make_prompts.ASSETS / name).read_text().splitlines() == lines
        assert len(set(lines)) == len(lines)
    nouns = {noun: name for name, kind in table.CATEGORIES.items() for noun in kind.nouns}
    held = [re.fullmatch(r"an? (\w+) (.+)", line).groups() for line in make_prompts.heldout()]
    assert 48 <= len(held) <= 64 and all(table.held_out(nouns[noun], color) for color, noun in held)
    pattern = re.compile(rf"({'|'.join(COLORS)}) ({'|'.join(sorted(nouns, key=len, reverse=True))})\b")
    found = [pair for line in make_prompts.train() for pair in pattern.findall(line)]
    assert len(found) > 300 and not any(table.held_out(nouns[noun], color) for color, noun in found)
    assert {nouns[noun] for _, noun in found} == set(table.CATEGORIES) and {color for color, _ in found} == set(COLORS)
