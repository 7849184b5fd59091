"""The furniture set on archives made here: a cube, a plate with a picture, hostile files."""

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "embedded"))
from furniture import attribution, catalog, colours, dataset, mesh, render, wavefront, words

CORNERS = [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
SIDES = [(1, 2, 4, 3), (5, 7, 8, 6), (1, 5, 6, 2), (3, 4, 8, 7), (1, 3, 7, 5), (2, 6, 8, 4)]  # outwards
FRONT = 5  # the side on +Z


def cube(size=(1.0, 1.0, 1.0), front="red") -> str:
    """An OBJ file: a box with quads, its +Z side in a material of its own."""
    lines = ["mtllib box.mtl"]
    lines += [f"v {x * size[0]} {y * size[1]} {z * size[2]}" for x, y, z in CORNERS]
    lines += ["vt 0 0", "vt 1 0", "vt 1 1", "vt 0 1"]
    for k, side in enumerate(SIDES):
        lines += [
            f"usemtl {front if k == FRONT else 'plain'}",
            "f " + " ".join(f"{v}/{t + 1}" for t, v in enumerate(side)),
        ]
    return "\n".join(lines)


MTL = "newmtl plain\nKd 0.5 0.5 0.5\nnewmtl red\nKd 0.8 0 0\nnewmtl picture\nKd 1 1 1\nmap_Kd maps\\Check.PNG\n"


def picture() -> bytes:
    """Left half green, right half blue."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4, 1], pixels[:, 4:, 2] = 200, 200
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def archive(folder: Path, models, name="KatorLegaz", files=None, notices=None) -> Path:
    """A library with models {id: (name, OBJ text, creator)}."""
    lines = ["id=Test"]
    path = folder / f"{name}.sh3f"
    with zipfile.ZipFile(path, "w") as pack:
        for n, (key, (title, text, creator)) in enumerate(models.items(), 1):
            lines += [f"id#{n}=Lib#{key}", f"name#{n}={title}", f"category#{n}=Living room", f"creator#{n}={creator}"]
            lines += [f"model#{n}=/lib/{key}/box.obj"]
            pack.writestr(f"lib/{key}/box.obj", text)
            pack.writestr(f"lib/{key}/box.mtl", MTL)
            pack.writestr(f"lib/{key}/check.png", picture())
            if notices and key in notices:
                pack.writestr(f"lib/{key}/LICENSE.txt", notices[key])
        for key, data in (files or {}).items():
            pack.writestr(key, data)
        pack.writestr("PluginFurnitureCatalog.properties", "\n".join(lines))
    return path


def load(path: Path, k=0) -> wavefront.Mesh:
    opened = catalog.Archive(path)
    entry = catalog.entries(opened)[k]
    return mesh.prepare(wavefront.load(opened, entry), entry)


@pytest.fixture
def box(tmp_path) -> wavefront.Mesh:
    return load(archive(tmp_path, {"box": ("Box", cube(), "Ann")}))


def half() -> float:
    return mesh.RADIUS / 3**0.5


def test_a_cube_has_the_depth_and_normals_that_geometry_says(box):
    views = render.render(box, np.zeros((0, 2)), side=65, directions=0)
    assert np.allclose(np.abs(box.position), half(), atol=1e-6)
    down = np.radians(render.ELEVATION)
    eye = render.DISTANCE * np.array([0, np.sin(down), np.cos(down)])
    for y in (28, 32, 36):  # rays through the middle column that meet the front: u = x / (W - 1) is 1/2 at x = 32
        v = (y / 64 - 0.5) / render.FOCAL
        ray = np.array([0, np.cos(down) * -v - np.sin(down), np.sin(down) * v - np.cos(down)])
        z = (half() - eye[2]) / ray[2]
        assert abs(eye[1] + z * ray[1]) < half()
        assert views.mask[0, y, 32] == 255
        assert float(views.depth[0, y, 32]) + render.DISTANCE == pytest.approx(z, abs=1e-3)
        # the front looks along +Z: in camera axes (x right, y down, z forward) that is (0, sin, -cos)
        assert np.allclose(views.normal[0, y, 32] / 127, [0, np.sin(down), -np.cos(down)], atol=0.01)
    assert (views.normal[..., 2][views.mask[:4] > 0] < 0).all()
    lengths = np.linalg.norm(views.normal.astype(float), axis=-1)[views.mask > 0] / 127
    assert np.allclose(lengths, 1, atol=0.02)
    assert (views.depth[views.mask == 0] == 0).all() and (views.rgb[views.mask == 0] == 255).all()


def test_the_front_is_seen_from_azimuth_0_and_a_positive_yaw_turns_it_to_the_right(box):
    red = lambda rgb: ((rgb[..., 0] > 100) & (rgb[..., 1] < 40)).sum((-1, -2))  # noqa: E731
    straight = render.render(box, np.array([[0.0, 20.0], [180.0, 20.0]]), directions=0)
    assert red(straight.rgb[0]) > 300 and red(straight.rgb[1]) == red(straight.rgb[2]) == red(straight.rgb[3]) == 0
    assert red(straight.rgb[4]) > 300 and red(straight.rgb[5]) == 0
    turned = render.render(mesh.transform(box, 90), np.zeros((0, 2)), directions=0)
    assert red(turned.rgb[1]) == red(straight.rgb[0]) and red(turned.rgb[0]) == 0


def test_canonical_and_novel_grids_differ_by_the_focal_length_alone(box):
    views = render.render(box, np.array([[90.0, render.ELEVATION]]), directions=0)
    canonical, novel = views.mask[1] > 0, views.mask[4] / 255
    assert canonical.sum() / novel.sum() == pytest.approx((63 / 64) ** 2, rel=0.01)
    assert set(np.unique(views.mask[:4])) <= {0, 255} and ((novel > 0) & (novel < 1)).any()
    edge = (novel > 0) & (novel < 1)
    assert (views.rgb[4][edge] >= views.rgb[4][novel == 1].min()).all()  # on white: never darker than the object


def test_light_is_the_formula_of_the_procedural_set_and_occlusion_darkens_corners(tmp_path, box):
    views = render.render(box, np.zeros((0, 2)), directions=0)
    front = views.rgb[2][(views.normal[2, ..., 1] > -60) & (views.mask[2] > 0)]  # the back, grey: normal (0, 0, -1)
    assert np.median(front) == pytest.approx(255 * 1.05 * 0.5 * 0.64, abs=1.5)
    flat = "\n".join(
        ["v -1 0 0", "v 1 0 0", "v 1 0 2", "v -1 0 2", "v -1 1.5 0", "v 1 1.5 0", "f 1 4 3 2", "f 1 2 6 5"]
    )
    corner = load(archive(tmp_path, {"l": ("Corner", flat, "Ann")}, "Scopia"))
    plain, dark = (render.render(corner, np.zeros((0, 2)), directions=d).rgb[0].astype(int) for d in (0, 24))
    assert (dark <= plain + 1).all() and (plain - dark).max() > 15


def test_textures_follow_coordinates_and_missing_coordinates_take_the_mean(tmp_path):
    path = archive(tmp_path, {"box": ("Box", cube(front="picture"), "Ann")})
    views = render.render(load(path), np.zeros((0, 2)), directions=0)
    row = views.rgb[0][32].astype(int)
    assert row[24, 1] > 100 > row[24, 2] and row[40, 2] > 100 > row[40, 1]  # green left, blue right
    bare = cube(front="picture").replace("/1 ", " ").replace("/2 ", " ").replace("/3 ", " ").replace("/4", "")
    path = archive(tmp_path, {"box": ("Box", bare, "Ann")}, "Scopia")
    row = render.render(load(path), np.zeros((0, 2)), directions=0).rgb[0][32].astype(int)
    assert abs(row[24] - row[40]).max() <= 2 and abs(row[24, 1] - row[24, 2]) <= 2


def test_polygons_are_cut_where_they_are_concave():
    text = b"v 0 0 0\nv 4 0 0\nv 4 4 0\nv 2 1 0\nv 0 4 0\nf 1 2 3 4 5\nf 1 2 99\nf -5 -4 -3\n"
    position, _, normal, _, _ = wavefront.parse_obj(text)
    area = np.cross(position[:, 1] - position[:, 0], position[:, 2] - position[:, 0])[:, 2] / 2
    assert len(position) == 4 and (area > 0).all() and area[:3].sum() == pytest.approx(10)  # 16 less the notch of 6
    assert np.isnan(normal).all()


def test_tints_change_the_material_and_keep_the_pattern(tmp_path):
    model = load(archive(tmp_path, {"box": ("Box", cube(front="picture"), "Ann")}))
    views = render.render(model, np.zeros((0, 2)), directions=0)
    materials, share = mesh.main_materials(model, views.ids)
    assert share > 0.5
    tinted = mesh.tint(model, materials, np.array([0.9, 0.1, 0.1]))
    shown = render.render(tinted, np.zeros((0, 2)), directions=0)
    to_world = np.stack([render.camera_to_world(a, render.ELEVATION)[:, :3] for a in render.AZIMUTHS])
    assert colours.shares(shown.rgb, shown.normal, shown.mask, to_world)[0][0] == "red"
    again = mesh.tint(model, [int(k) for k in np.flatnonzero(model.texture >= 0)], np.array([0.9, 0.1, 0.1]))
    row = render.render(again, np.zeros((0, 2)), directions=0).rgb[0][32].astype(int)
    assert row[24, 0] > row[40, 0] + 20 and row[24, 0] > 2 * row[24, 1]  # green was lighter than blue


def test_colour_words_name_the_paints():
    for word, paint in colours.COLORS.items():
        if word not in ("gold",):
            assert colours.WORDS[int(colours.word_of(np.array(paint)))] == word


def test_captions_start_plain_and_use_generic_nouns():
    entry = catalog.Entry("Scopia/x", "Scopia", "Chevrolet", "vehicles", (), "", catalog.CC_BY, "", (0, 0, 0), ())
    captions = words.captions(entry, [("orange", 0.7), ("black", 0.2)])
    assert captions == ["an orange car", "an orange car", "an orange car with black parts"]
    assert words.noun("coffee table") == "table" and words.noun("xylophone") == "xylophone"
    assert words.category("desk lamp") == "lamp" and words.category("hot dog") == "food"
    assert words.drop_reason(catalog.Entry(**{**entry.__dict__, "name": "Garage door"})) == "window or door"


def build(tmp_path, name="out", **options) -> tuple[Path, list]:
    models = {f"m{k}": ("Armchair", cube((1, 1 + k / 4, 1 / (1 + k))), f"Ann {k}") for k in range(4)}
    archive(tmp_path, models)
    settings = {"canonical": 2, "yaws": 1, "seed": 0, "size": 5} | options
    out = tmp_path / name
    said = []
    dataset.build(out, catalog.open_all(tmp_path), **settings, say=said.append)
    return out, said


def test_shards_have_the_agreed_tensors_and_are_the_same_again(tmp_path):
    out, _ = build(tmp_path)
    paths = sorted(out.glob("*-*.safetensors"))
    assert sum(len(json.loads(p.with_suffix(".json").read_bytes())["meta"]) for p in paths) == 12
    shapes = {
        "rgb": (np.uint8, (6, 64, 64, 3)),
        "mask": (np.uint8, (6, 64, 64)),
        "depth": (np.float16, (4, 64, 64)),
        "normal": (np.int8, (4, 64, 64, 3)),
        "novel": (np.float32, (2, 2)),
    }
    for path in paths:
        tensors, text = load_file(path), json.loads(path.with_suffix(".json").read_bytes())
        n = len(text["meta"])
        assert {k: (v.dtype, v.shape) for k, v in tensors.items()} == {k: (d, (n, *s)) for k, (d, s) in shapes.items()}
        assert all(len(c) == 3 and c[0] for c in text["captions"]) and len(text["captions"]) == n
        for meta in text["meta"]:
            assert meta["noun"] == "armchair" and meta["color"] in colours.WORDS and meta["licence"] == catalog.CC_BY_US
            assert meta["split"] == ("held" if path.name.startswith("held") else "train")
        assert (np.abs(tensors["depth"].astype(float)) <= mesh.RADIUS + 0.01).all()
        border = tensors["mask"][..., [0, -1], :].any() or tensors["mask"][..., [0, -1]].any()
        assert not border
    again, _ = build(tmp_path, "again")
    for path in paths:
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_a_run_goes_on_where_it_stopped_and_refuses_other_settings(tmp_path):
    out, _ = build(tmp_path)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    last = sorted(out.glob("*-*.json"))[-1]
    last.unlink()
    _, said = build(tmp_path)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert sum("a second" in line for line in said) == 1
    with pytest.raises(ValueError, match="same settings"):
        build(tmp_path, seed=1)


def test_licences_are_read_from_the_notices_and_credits_name_everyone(tmp_path):
    notices = {
        "strict": 'downloading "My Box" by ann\nReleased under\nCreative Commons Attribution 3.0\nhttp://www.blendswap.com/blends/view/7',
        "never": "Released under\nCreative Commons Attribution-NonCommercial 3.0\n",
        "alike": '<a href="http://creativecommons.org/licenses/by-sa/3.0">licence</a>',
    }
    names = {k: ("Box", cube(), k.title()) for k in ("free", *notices)}
    used = catalog.entries(catalog.Archive(archive(tmp_path, names, "BlendSwap-CC-0", notices=notices)))
    assert {e.creator: e.licence for e in used} == {"Free": catalog.CC0, "Strict": catalog.CC_BY}
    text = attribution.attribution(used)
    assert "- Strict: Box (“My Box”, <http://www.blendswap.com/blends/view/7>)" in text and "Free" in text
    assert all(address in text for address in catalog.ADDRESSES.values()) and "Changes" in text


@pytest.mark.parametrize("name", ["../evil.obj", "/etc/passwd", "a/../../b.obj", "C:\\x.obj"])
def test_paths_that_leave_the_archive_are_refused(tmp_path, name):
    path = archive(tmp_path, {"box": ("Box", cube(), "Ann")}, files={"x": b""})
    with zipfile.ZipFile(path, "a") as pack:
        info = zipfile.ZipInfo("x")
        info.filename = name
        pack.writestr(info, b"v 0 0 0")
    with pytest.raises(ValueError, match="unsafe path"):
        catalog.Archive(path)


def test_other_hostile_files_are_refused_or_skipped(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="licence is not known"):
        catalog.entries(catalog.Archive(archive(tmp_path, {"box": ("Box", cube(), "Ann")}, "Unknown")))
    with pytest.raises(FileNotFoundError, match="sweethome3d-furniture"):
        catalog.open_all(tmp_path)
    outside = "newmtl red\nKd nan inf -1\nmap_Kd ../../../../etc/passwd\nd\n"
    path = archive(tmp_path, {"box": ("Box", cube(), "Ann")}, files={"lib/box/extra.mtl": outside})
    opened = catalog.Archive(path)
    assert opened.find("lib/box", "../../../../etc/passwd") is None
    with pytest.raises(ValueError, match="unreadable"):
        wavefront.mip_chain(b"GIF89a no picture")
    monkeypatch.setattr(catalog, "MAX_MEMBER", 100)
    with pytest.raises(ValueError, match="more than is allowed"):
        catalog.Archive(path)
    for text in (b"", b"f 1 2 3\n", b"v nan inf 1e999\nf 1 1 1\nf 1/9/9 1//-4 1/\n", b"v 1\nf \xff\x00 1 1"):
        wavefront.parse_obj(text)
